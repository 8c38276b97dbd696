"""The job server of a Ray cluster: a client of it, the cluster's nodes, and its refusals as sentences.

Ray itself reads the token of the job server (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN). It is not
an argument here, so that it does not appear in a command line, a log or a job's description.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from moe_dist.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

CONNECTION_SECONDS = 20.0
"""How long the port of a job server may take to accept a connection."""

NO_SERVER = (
    "no job server answers at {}: is the cluster up, and is its port forwarded (`ray dashboard ray_cluster.yaml`)?"
)

MOST_NODES = 10_000
"""The most nodes that Ray lists. Its default is 100, which may all be dead nodes of an autoscaled cluster."""


@dataclass(frozen=True)
class ClusterNode:
    """A living node: its address, and its amount of each resource (CPU, GPU, ...)."""

    address: str
    resources: Mapping[str, float]


def connect(address: str) -> JobSubmissionClient:
    """A client of the job server at `address`. Raises UserError if none answers, or it refuses the client."""
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise UserError("--address needs Ray, which is not installed: pip install 'ray[default]'") from None
    if urlsplit(address).scheme not in ("http", "https"):
        raise UserError(
            f"--address {address}: give the job server's address with its scheme, as in http://127.0.0.1:8265"
        )
    _require_open_port(address)
    for module in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)  # Ray prefers these to the address that it is given
    with raising_user_errors(address):
        return JobSubmissionClient(address)


def _require_open_port(address: str) -> None:
    """Raise UserError unless the job server's port takes a connection, for which Ray's client would wait on and on."""
    parts = urlsplit(address)
    try:
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        socket.create_connection((parts.hostname or "", port), CONNECTION_SECONDS).close()
    except ValueError:
        raise UserError(f"--address {address}: holds no port; write it as http://127.0.0.1:8265") from None
    except OSError:
        raise UserError(NO_SERVER.format(address)) from None


def living_nodes(address: str) -> list[ClusterNode]:
    """The nodes of the cluster that are alive. Raises UserError if its state API does not answer."""
    from ray.util.state import list_nodes

    with raising_user_errors(address):  # filtered below, because Ray raises if its own filter drops nodes
        nodes = list_nodes(address=address, detail=True, limit=MOST_NODES)
    return [ClusterNode(node.node_ip, node.resources_total or {}) for node in nodes if node.state == "ALIVE"]


@contextlib.contextmanager
def raising_user_errors(address: str) -> Iterator[None]:
    """Raise UserError for exceptions of Ray in the block, which uses the job server at `address`.

    Ray raises AuthenticationError if the token is missing or wrong, ConnectionError (an OSError, as those of requests)
    if nothing answers, RuntimeError with the server's words if it refuses otherwise. Its state API has own exceptions.
    """
    from ray.exceptions import AuthenticationError, RayError
    from ray.util.state.exception import DataSourceUnavailable, RayStateApiException

    try:
        yield
    except AuthenticationError as error:
        raise UserError(_refusal(address, str(error))) from None
    except ConnectionError:
        raise UserError(NO_SERVER.format(address)) from None
    except (RayStateApiException, DataSourceUnavailable) as error:
        raise UserError(
            f"{address} does not tell which nodes the cluster has; check the cluster, and submit again. "
            f"It said: {' '.join(str(error).split())}"
        ) from None
    except (OSError, RuntimeError, RayError) as error:
        raise UserError(f"{address}: {' '.join(str(error).split())}") from None


def _refusal(address: str, reason: str) -> str:
    """A sentence on why the job server answered 401 or 403, or Ray had no token to send."""
    variables = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file with the cluster's token"
    if reason.startswith("Authentication failed"):
        return f"{address} refuses the token (403): it is not this cluster's; set {variables}"
    if reason.startswith("Authentication required"):
        return f"{address} asks for a token (401) and none was sent: set {variables}"
    return f"no token to send to {address}: set {variables}, which must not be empty"
