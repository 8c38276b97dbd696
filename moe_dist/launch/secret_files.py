"""Tells files that hold keys, tokens or passwords by their names, and private keys by how they begin."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

NAMES = (  # in lower case
    *(".env", ".env.*", "*.env", ".envrc", ".flaskenv"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.pem", "*.key", "*.ppk", "*.p8", "*.p12", "*.pfx"),
    *("*.jks", "*.keystore", "*.kdbx", "*.gpg", "*.ovpn"),
    *(
        "*.netrc",
        "_netrc",
        ".pypirc",
        ".npmrc",
        ".pgpass",
        ".my.cnf",
        ".htpasswd",
        ".git-credentials",
        ".s3cfg",
        ".boto",
    ),
    *("credentials", "credentials.*", "*credentials.json", "*service_account*.json", "*service-account*.json"),
    *("client_secret*.json", "secret", "secrets", "secret.*", "secrets.*", "*_secret", "*_secrets", "*_secrets.*"),
    *("token", "token.txt", "token.json", "*_token", "*_token.txt", "kubeconfig", "kubeconfig.*", "rclone.conf"),
    "*.tfstate*",
)
FOLDERS = (
    ".aws",
    ".ssh",
    ".gnupg",
    ".azure",
    ".kube",
    ".docker",
    ".oci",
    "gcloud",
    ".huggingface",
    ".kaggle",
    ".secrets",
)
NO_SECRETS = ("*.pub", "*.example", "*.sample", "*.template", "*.dist", "*.py", "*.md", "*.rst")
"""Names that are public by their ending, such as `.env.example` and `id_rsa.pub`, whatever else is in them."""
HEAD_BYTES = 4096


def is_secret(name: Path, path: Path) -> bool:
    """Whether the file at `path`, called `name` in its tree, is one that should not leave this machine unasked."""
    file, folders = name.name.lower(), [folder.lower() for folder in name.parts[:-1]]
    if any(fnmatchcase(file, pattern) for pattern in NO_SECRETS):
        return False
    if any(fnmatchcase(file, pattern) for pattern in NAMES) or any(folder in FOLDERS for folder in folders):
        return True
    with path.open("rb") as opened:
        head = opened.read(HEAD_BYTES)
    return b"-----BEGIN " in head and b"PRIVATE KEY-----" in head
