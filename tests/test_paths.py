"""Paths of this machine are accepted, and URLs are errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_dist.errors import UserError
from moe_dist.paths import local_path, typed


@pytest.mark.parametrize("path", ["runs/x", "/runs/x", "~/x", "a:b/c", "a:/b", "C:/runs", "2024-01-01T12:00:00/x", "."])
def test_a_path_is_taken_as_it_is(path: str) -> None:
    assert local_path(path) == Path(path)
    assert typed("--out", "give a folder")(path) == Path(path)


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://b", "https://host/x", "file:///runs/x", "s3:/bucket/x"])
def test_a_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="only shards and runs may be a URL"):
        local_path(url)
    with pytest.raises(UserError, match=f"--out {url}: must be a path of this machine .*; give a folder"):
        typed("--out", "give a folder")(url)


def test_what_is_secret_in_a_url_is_not_told() -> None:
    with pytest.raises(UserError) as told:
        typed("--from", "download it")("https://me:word@host/x.tar?signature=abc")
    assert str(told.value).startswith("--from https://host/x.tar: ")
