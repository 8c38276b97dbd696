"""What makes a Ray that a command starts for itself private: this machine's addresses alone, and a token of one's own.

Left alone, Ray listens on all interfaces, and writes the token that it then asks for where all users of the machine can
read it.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from moe_dist.errors import UserError

OWN_TOKEN = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
"""Ray's variables for a token of the user's, which is left as it is."""
OTHERS = 0o077
"""The permissions of a file that are not its owner's."""


@contextmanager
def private_ray() -> Iterator[None]:
    """Let a Ray that the block starts listen on 127.0.0.1 alone, and ask for a token that nobody else can read.

    Ray has been imported before. It is told what it takes macOS and Windows for: a machine that is in no cluster. Its
    environment variable for that would also reach a `ray start` by a process of this one. Raises UserError where the
    token cannot be written or kept to its owner.
    """
    close_token()
    constants: Any = sys.modules["ray._private.ray_constants"]
    before, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


def close_token() -> None:
    """Make the token that Ray finds by itself, where there is none, and close it to others, where it is open."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or OWN_TOKEN & os.environ.keys():
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            suppress(FileExistsError),
            os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file,
        ):
            file.write(secrets.token_hex(32))
        if path.stat().st_mode & OTHERS:
            path.chmod(0o600)
    except OSError as error:
        raise UserError(
            f"{path}: Ray's token cannot be kept there for you alone ({error.strerror}); mend that, or set "
            "RAY_AUTH_TOKEN_PATH to a file of mode 0600 that holds a token"
        ) from None
