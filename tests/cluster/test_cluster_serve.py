"""A model behind Ray Serve, asked over HTTP on loopback: answers under load, and what is refused."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from s3_server import reserved_port
from small_jobs import quiet, traditional

import moe_dist
import moe_dist.run.run as run_module

SERVE = Path(__file__).parents[2] / "cluster" / "serve.py"
KEY = "a key for the test, long enough"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run."""
    folder = tmp_path_factory.mktemp("served") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moe_dist.report.build.build_report", lambda path: path)
        run_module.run_job(traditional(epochs=1), folder, "local", quiet())
    return folder


@pytest.fixture(scope="module")
def port(run: Path) -> Iterator[int]:
    """The port of a service of the run, given by its URL; it takes images of up to 64 KiB."""
    for name in ("fastapi", "uvicorn"):
        pytest.importorskip(name)
    reservation = reserved_port()
    port = reservation.getsockname()[1]
    line = [sys.executable, str(SERVE), f"file://{run}", "--port", str(port), "--limit-mib", "0.0625"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "MOE_DIST_API_KEY": KEY
    }
    with subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as serving:
        try:
            wait_until_it_answers(port, serving)
            yield port
        finally:
            serving.send_signal(signal.SIGTERM)
            said, _ = serving.communicate()
            reservation.close()
    assert serving.returncode == 128 + signal.SIGTERM, said


def wait_until_it_answers(port: int, serving: subprocess.Popen[str]) -> None:
    while True:
        if serving.poll() is not None:
            pytest.fail(f"the service ended: {serving.stdout.read() if serving.stdout else ''}")
        try:
            if asked(port, "GET", "/health")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.5)


def asked(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict]:
    """The status and the content of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if answer.headers["Content-Type"] == "application/json" else {}
    finally:
        connection.close()


def images(count: int) -> list[bytes]:
    random, files = np.random.default_rng(0), []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(file, "png")
        files.append(file.getvalue())
    return files


def test_two_hundred_requests_at_twenty_at_once_all_have_their_own_answer(
    run: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the loaded model says it. The time that 99 % of them took is printed."""
    given = images(200)

    def ask(image: bytes) -> tuple[int, dict, float]:
        began = time.perf_counter()
        status, content = asked(port, "POST", "/predict", image, X_API_Key=KEY)
        return status, content, time.perf_counter() - began

    with ThreadPoolExecutor(20) as pool:
        began = time.perf_counter()
        answers = list(pool.map(ask, given))
        seconds = time.perf_counter() - began
    wanted = moe_dist.load(run).predict(given)
    assert [status for status, _, _ in answers] == [200] * 200
    assert [content["class"] for _, content, _ in answers] == wanted.names
    found = np.array([content["probability"] for _, content, _ in answers])
    np.testing.assert_allclose(found, wanted.probabilities, atol=1e-5)
    np.testing.assert_allclose([content["gates"][""] for _, content, _ in answers], wanted.gates[""], atol=1e-5)
    times = 1e3 * np.array([taken for _, _, taken in answers])
    with capsys.disabled():
        p50, p99 = np.percentile(times, [50, 99])
        print(f"\n200 requests, 20 at once: {200 / seconds:.0f}/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms")


def test_without_the_key_nothing_is_answered_but_the_health_check(port: int) -> None:
    (image,) = images(1)
    for headers in ({}, {"X_API_Key": "wrong"}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY + "x"}):
        status, content = asked(port, "POST", "/predict", image, **headers)
        assert status == 401 and "the key is missing or wrong" in content["error"]
    assert asked(port, "POST", "/predict", image, Authorization=f"Bearer {KEY}")[0] == 200
    assert asked(port, "GET", "/health")[1]["status"] == "ok"


def test_a_body_that_is_too_large_is_refused(port: int) -> None:
    """Also where its length is not announced."""
    large = bytes(70_000)
    status, content = asked(port, "POST", "/predict", large, X_API_Key=KEY)
    assert status == 413 and "an image may have 65,536 bytes here" in content["error"]
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/predict", iter([large[:35_000]] * 2), {"X-API-Key": KEY}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_what_is_no_image_is_refused_with_the_reason(port: int) -> None:
    for body, reason in {b"": "an empty file", b"this is no image": "not a JPEG, PNG or PPM image"}.items():
        status, content = asked(port, "POST", "/predict", body, X_API_Key=KEY)
        assert status == 422 and reason in content["error"]
    assert asked(port, "GET", "/predict", X_API_Key=KEY)[0] == 405
    assert asked(port, "GET", "/elsewhere")[0] == 404


def test_without_a_key_no_service_is_started(run: Path) -> None:
    pytest.importorskip("fastapi")
    without = {
        name: value for name, value in os.environ.items() if name not in ("MOE_DIST_API_KEY", "RAY_AUTH_TOKEN_PATH")
    }
    done = subprocess.run([sys.executable, str(SERVE), str(run)], env=without, capture_output=True, text=True)
    assert done.returncode == 1 and "MOE_DIST_API_KEY is not set" in done.stderr
