"""A trained model behind Ray Serve: `python cluster/serve.py RUN_DIR`. docs/serving.md says how it is asked.

POST /predict   an image's bytes (of methods of vectors: a JSON list of numbers) -> class, probability, five best, gates
GET  /health    whether the model is loaded, and which; needs no key

Images that arrive at the same time are predicted together. A request needs a key (401), may be so large (413), and must
hold an image that the model can use (422). Ray Serve does the rest: queues, replicas, restarts.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import json
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moe_dist.errors import UserError
from moe_dist.launch.ray import started_ray
from moe_dist.paths import is_url
from moe_dist.signals import catch_signals, exit_code
from moe_dist.terminal import Show, console, say
from moe_dist.use.batches import best_device
from moe_dist.use.load import Loading

try:
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import JSONResponse
except ImportError as error:
    sys.exit(f"error: Ray Serve is not whole ({error.name} is missing): pip install 'moe-dist[serve]'")

KEY = "MOE_DIST_API_KEY"
SHORTEST_KEY = 16
"""Characters: whoever can ask the service can try keys."""
BEST = 5
WAIT_SECONDS = 0.01
"""How long the first image of a batch waits for others."""


@dataclass(frozen=True)
class Limits:
    """Largest bytes of a request and images of a batch; requests that may wait for a replica."""

    bytes: int = 10 * 2**20
    batch: int = 32
    queue: int = 512


class Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Service:
    """One replica: the model, loaded once. key_digest: the sha256 of the key, so that no log or state holds the key."""

    def __init__(self, loading: Loading, key_digest: str, limits: Limits, cpus: int) -> None:
        torch.set_num_threads(cpus)
        self._model = loading.load().to(best_device())
        self._key_digest, self._limits = key_digest, limits
        self._full = self._model.preprocessing.empty(1)
        self._together.set_max_batch_size(limits.batch)

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer a request."""
        try:
            if request.url.path == "/health":
                about = self._model.about
                return JSONResponse({"status": "ok", "model": about["model"], "run": about["run"]})
            if request.url.path != "/predict":
                raise Refused(404, "there is POST /predict and GET /health")
            if request.method != "POST":
                raise Refused(405, "send the image by POST")
            self._require_key(request.headers)
            return JSONResponse(await self._answer(await self._body(request)))
        except Refused as refused:
            asks = {"WWW-Authenticate": "Bearer"} if refused.status == 401 else {}
            return JSONResponse({"error": str(refused)}, refused.status, headers=asks)

    def _require_key(self, headers: Any) -> None:
        """Raise Refused unless the request has the key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`."""
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(digest(given), self._key_digest):
            raise Refused(
                401, "the key is missing or wrong; send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
            )

    async def _body(self, request: Request) -> bytes:
        """The bytes that were sent. Raises Refused as soon as they are too many, whatever length was announced."""
        too_large = Refused(413, f"an image may have {self._limits.bytes:,} bytes here")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._limits.bytes:
            raise too_large
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._limits.bytes:
                raise too_large
        return bytes(body)

    async def _answer(self, body: bytes) -> dict[str, Any]:
        try:
            sample = await asyncio.to_thread(self._sample, body)
        except (ValueError, UserError) as error:
            raise Refused(422, " ".join(str(error).split())) from None
        return await self._together(sample)

    def _sample(self, body: bytes) -> Any:
        """The square, or vector, of a body."""
        seen = self._model.preprocessing
        return seen.sample(json.loads(body) if seen.vector_size else body)

    @serve.batch(max_batch_size=Limits.batch, batch_wait_timeout_s=WAIT_SECONDS)
    async def _together(self, samples: list[Any]) -> list[dict[str, Any]]:
        """The answers for samples that are predicted in one batch."""
        predictions = await asyncio.to_thread(self._model.predict_samples, torch.stack(samples), self._full)
        best = predictions.best(BEST)
        gates = {name: gate.tolist() for name, gate in predictions.gates.items()}
        return [
            {
                "class": own[0][0],
                "probability": own[0][1],
                "best": own,
                "gates": {name: gate[row] for name, gate in gates.items()},
            }
            for row, own in enumerate(best)
        ]


def digest(key: str) -> str:
    """The sha256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def the_key() -> str:
    """The key that requests need: MOE_DIST_API_KEY, or the cluster's token. Raises UserError without either."""
    key = os.environ.get(KEY, "").strip()
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not key and path and Path(path).is_file():
        key = Path(path).read_text().strip()
    if len(key) < SHORTEST_KEY:
        raise UserError(
            f"{KEY} is {'too short' if key else 'not set'}: whoever reaches the port could use the model; set it to a "
            f"secret of {SHORTEST_KEY} letters or more (openssl rand -hex 32)"
        )
    return key


def run_service(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises UserError where the model cannot be loaded, or there is no key."""
    run = options.run if is_url(options.run) else str(Path(options.run).absolute())
    loading = Loading(run, options.model, options.checkpoint, options.calibrated)
    loading.load()  # what is wrong with it is said here, and not in a replica's log
    limits = Limits(int(options.limit_mib * 2**20), options.batch)
    key_digest = digest(the_key())
    deployment = serve.deployment(
        num_replicas=options.replicas,
        max_ongoing_requests=4 * limits.batch,
        max_queued_requests=limits.queue,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
    )(Service)
    show = Show(console)
    with started_ray(options.replicas * options.cpus + 1, show, options.gpus):
        try:
            with show.working("start Ray Serve"):
                serve.start(http_options={"host": options.host, "port": options.port})
                bound = deployment.bind(loading, key_digest, limits, options.cpus)
                serve.run(bound, name="moe-dist", route_prefix="/")
            say(console, f"http://{options.host}:{options.port}/predict answers; Ctrl-C ends it")
            threading.Event().wait()
        finally:
            serve.shutdown()


def main() -> None:
    """Read the command line, and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN_DIR", help="a run directory, or an exported folder, or the URL of either")
    parser.add_argument("--model", help="the model's name, in a run of several")
    parser.add_argument("--checkpoint", choices=("chosen", "last"), default="chosen")
    parser.add_argument("--calibrated", action="store_true", help="at the temperature that was fitted on validation")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 answers everybody who reaches this machine")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--limit-mib", type=float, default=10, help="largest image, in MiB")
    parser.add_argument("--batch", type=int, default=32, help="most images that are predicted together")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--cpus", type=int, default=1, help="of each replica")
    parser.add_argument("--gpus", type=float, default=0, help="of each replica, may be a fraction")
    options = parser.parse_args()
    catch_signals()
    try:
        run_service(options)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        say(console, "ended")
        sys.exit(exit_code())


if __name__ == "__main__":
    main()
