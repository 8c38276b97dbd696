"""The errors that count as a disk's, the places that they name, and their sentences."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
from safetensors import SafetensorError

from moe_dist.disk import raising_disk_errors
from moe_dist.errors import DiskError, UserError

RUN = Path("/runs/x")


def told(error: Exception) -> str:
    """The sentence for a block that fails with `error`."""
    with pytest.raises(DiskError) as raised, raising_disk_errors(RUN, "a checkpoint"):
        raise error
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "the disk is full, so a checkpoint could not be written; free space there and go on with"),
        (errno.EDQUOT, "the disk quota is used up, so a checkpoint could not be written; free space there and go on"),
        (errno.EROFS, "the file system is read-only, so a checkpoint could not be written; make it writable and go on"),
        (errno.EIO, "the disk fails, so a checkpoint could not be written; repair it and go on with --resume"),
    ],
    ids=errno.errorcode.get,
)
def test_a_disks_error_is_a_sentence(code: int, reason: str) -> None:
    assert told(OSError(code, "in the system's words")).startswith(f"/runs/x: {reason}")


def test_the_error_behind_others_counts_and_safetensors_wording_does() -> None:
    full = "the disk is full"
    wrapped = RuntimeError("the archive could not be closed")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert full in told(wrapped)
    assert full in told(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))


@pytest.mark.parametrize("name", ["/runs/x/dfcp/steps/split/done.json", None])
def test_the_folder_is_the_one_that_is_written_to(name: str | None) -> None:
    assert told(OSError(errno.ENOSPC, "No space left on device", name)).startswith("/runs/x: ")


def test_a_file_elsewhere_is_named_by_its_own_folder() -> None:
    """The file may be in the cache or in a folder for temporary files, on another disk."""
    assert told(OSError(errno.ENOSPC, "No space left on device", "/cache/a.npy")).startswith("/cache: ")


def test_where_nobody_knows_the_folder_none_is_named() -> None:
    with (
        pytest.raises(DiskError, match=r"^the disk is full, so a file .* try again$"),
        raising_disk_errors(None, "a file", "try again"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "/runs/x/y"),
        PermissionError(errno.EACCES, "Permission denied"),
        SafetensorError("Error while deserializing header: header too small"),
        UserError("a sentence of its own"),
        ValueError("(os error 28)"),
    ],
)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, raising_disk_errors(RUN, "a checkpoint"):
        raise error
    assert raised.value is error


def test_a_thread_that_meets_it_prints_nothing_and_another_failure_is_still_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard's writer is a thread; its error is raised at the next write."""
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # pytest has one of its own

    def run(error: Exception) -> None:
        def fail() -> None:
            raise error

        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()

    with raising_disk_errors(RUN, "the log"):
        run(OSError(errno.ENOSPC, "No space left on device"))
        assert capsys.readouterr().err == ""
        run(ValueError("a bug"))
    assert "a bug" in capsys.readouterr().err
    run(OSError(errno.ENOSPC, "No space left on device"))
    assert "No space" in capsys.readouterr().err
