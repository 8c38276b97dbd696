"""The effect of signals on a command, which runs in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

COMMAND = """
import signal, sys, time
from moe_dist.signals import Stopped, catch_signals, exit_code, deferring_signals, stoppable
catch_signals()
try:
    with stoppable(lambda: "the command again"):
        {body}
except Stopped as stopped:
    print(stopped, flush=True)
    sys.exit(exit_code())
"""
WAIT = """
        try:
            print("ready", flush=True)
            while True:
                time.sleep(0.05)  # a signal between its start and its system call is seen at its end only
        finally:
            print("unwound", flush=True)
"""
UNWIND_FOREVER = """
        try:
            print("ready", flush=True)
            while True:
                time.sleep(0.05)  # a signal between its start and its system call is seen at its end only
        finally:
            print("unwinding", flush=True)
            while True:
                time.sleep(0.05)  # a signal between its start and its system call is seen at its end only
"""
UNWIND_UNTIL_TOLD = """
        try:
            print("ready", flush=True)
            while True:
                time.sleep(0.05)  # a signal between its start and its system call is seen at its end only
        finally:
            print("unwinding", flush=True)
            sys.stdin.readline()
"""
TAKEN_BY_A_LIBRARY = """
        with deferring_signals():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
        try:
            print("ready", flush=True)
            while True:
                time.sleep(0.05)  # a signal between its start and its system call is seen at its end only
        finally:
            print("unwound", flush=True)
"""
WITHIN_THE_LIBRARY = """
        with deferring_signals():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
            print("ready", flush=True)
            sys.stdin.readline()
            print("started", flush=True)
"""
WITHIN_A_LIBRARY_THAT_HANGS = """
        with deferring_signals():
            print("ready", flush=True)
            while True:
                time.sleep(0.05)  # a signal between its start and its system call is seen at its end only
"""
LOST_IN_A_DESTRUCTOR = """
        class Slow:
            def __del__(self):
                print("ready", flush=True)
                while True:
                    time.sleep(0.05)  # a signal between its start and its system call is seen at its end only
        try:
            Slow()
            while True:
                time.sleep(0.05)
        finally:
            print("unwound", flush=True)
"""
FAILS_AFTERWARDS = """
        try:
            print("ready", flush=True)
            while True:
                time.sleep(0.05)  # a signal between its start and its system call is seen at its end only
        finally:
            raise RuntimeError("what was being shut down is gone already")
"""
PLAIN = """
        try:
            print("ready", flush=True)
            while True:
                time.sleep(0.05)  # a signal between its start and its system call is seen at its end only
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None  # as Ray does, whatever it was
"""


def start(body: str) -> subprocess.Popen[str]:
    """The command, once its body runs."""
    program = COMMAND.format(body=body.strip())
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("sent", "code", "by"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")], ids=["term", "int"]
)
@pytest.mark.parametrize("body", [WAIT, TAKEN_BY_A_LIBRARY, LOST_IN_A_DESTRUCTOR, FAILS_AFTERWARDS, PLAIN])
def test_it_unwinds_and_says_how_to_go_on(body: str, sent: signal.Signals, code: int, by: str) -> None:
    process = start(body)
    process.send_signal(sent)
    printed, errors = process.communicate()
    assert printed.removeprefix("unwound\n") == f"stopped by {by}; go on with: the command again\n"
    assert printed.startswith("unwound\n") == ("unwound" in body)
    assert (process.returncode, errors) == (code, "")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_library_that_is_starting_is_not_left_half_started(sent: signal.Signals) -> None:
    process = start(WITHIN_THE_LIBRARY)
    process.send_signal(sent)
    by = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}[sent]
    assert process.communicate("\n")[0] == f"started\nstopped by {by}; go on with: the command again\n"
    assert process.returncode == 128 + sent


def test_a_second_ctrl_c_ends_a_start_that_hangs() -> None:
    process = start(WITHIN_A_LIBRARY_THAT_HANGS)
    while process.poll() is None:  # the first is seen when it is seen
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    process.communicate()
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_what_is_unwinding(first: signal.Signals) -> None:
    process = start(UNWIND_FOREVER)
    process.send_signal(first)
    assert process.stdout is not None and process.stdout.readline() == "unwinding\n"
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == -signal.SIGINT


def test_a_second_sigterm_does_not() -> None:
    """`timeout` sends it twice, Slurm to every process and again."""
    process = start(UNWIND_UNTIL_TOLD)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None and process.stdout.readline() == "unwinding\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate("\n")[0] == "stopped by SIGTERM; go on with: the command again\n"
    assert process.returncode == 143
