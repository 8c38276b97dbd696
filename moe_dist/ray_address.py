"""RAY_ADDRESS, looked at before Ray is given it: Ray tries to reach a cluster that is gone for a quarter of an hour."""

from __future__ import annotations

import os
import re
import socket
from contextlib import closing

from moe_dist.errors import UserError

ANSWER_SECONDS = 12.0
"""How long a cluster may take to accept a connection, and as long again to speak as Ray does."""
_HOST_AND_PORT = re.compile(r"(?:ray://)?(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s:/@\[\]]+)):(?P<port>\d{1,5})")
NONE = ("", "local")
"""Values of RAY_ADDRESS that ask for a new Ray on this machine."""
FOUND_BY_RAY = "auto"
"""The value of RAY_ADDRESS that names no place: the cluster on this machine."""


def cluster_address() -> str | None:
    """The address of the cluster that RAY_ADDRESS names, or None where it names none.

    Raises UserError where it is no address of a cluster, or no cluster answers there: within half a minute.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address in NONE:
        return None
    if address == FOUND_BY_RAY:
        return address
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS {address}: is the address of a job server, to which `moe-dist submit JOB.yaml --address "
            f"{address}` sends jobs; to run on a cluster from here, give its own, as head:6379, or unset RAY_ADDRESS"
        )
    parts = _HOST_AND_PORT.fullmatch(address)
    if not parts:
        raise UserError(
            f"RAY_ADDRESS {address}: write it as host:port, as `ray start` prints it, or unset it to use this machine"
        )
    host, port = parts["v6"] or parts["host"], int(parts["port"])
    if reason := _silence(host, port):
        raise UserError(
            f"RAY_ADDRESS {address}: no Ray cluster answers there ({reason}); start the cluster, correct the address, "
            "or unset RAY_ADDRESS to use this machine"
        )
    return address


def _silence(host: str, port: int) -> str:
    """Why nothing that speaks as Ray does answers at a port; empty if it does."""
    try:
        socket.create_connection((host, port), ANSWER_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return ""  # its certificates are Ray's to read
    try:
        import grpc  # comes with Ray
    except ImportError:
        return ""
    with closing(grpc.insecure_channel(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            return "what listens there is no Ray"
    return ""
