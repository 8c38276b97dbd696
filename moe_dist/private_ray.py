"""What makes a Ray that a command starts for itself private: this machine's addresses alone, and a token of one's own.

Left alone, Ray listens on all interfaces, and writes the token that it then asks for where all users of the machine can
read it. Called before Ray is imported, since Ray reads these settings once.
"""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path

from moe_dist.errors import UserError

ONE_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's variable for whether a node may be of a cluster, which is so on Linux; without, it binds to 127.0.0.1."""
OWN_TOKEN = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
"""Ray's variables for a token of the user's, which is left as it is."""
OTHERS = 0o077
"""The permissions of a file that are not its owner's."""


def keep_ray_private() -> None:
    """Let a Ray that this process starts listen on 127.0.0.1 alone, and ask for a token that nobody else can read.

    Raises UserError where the token cannot be written or kept to its owner.
    """
    os.environ[ONE_MACHINE] = "0"
    if constants := sys.modules.get("ray._private.ray_constants"):
        constants.ENABLE_RAY_CLUSTER = False  # type: ignore[attr-defined] # it has read the variable already
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
