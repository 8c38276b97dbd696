"""resources.deterministic: what it lets through, and the sentence where an operation has no such kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from moe_dist.errors import UserError
from moe_dist.train.task import compute_the_same_bits, refusing_other_kernels


@pytest.fixture
def same_bits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    compute_the_same_bits()
    yield
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_an_operation_without_a_deterministic_kernel_is_named(same_bits: None) -> None:
    """`put_` has none on a CPU either."""
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    said = "^resources.deterministic: put_ has no deterministic kernel .* set it to false"
    with pytest.raises(UserError, match=said), refusing_other_kernels():
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))


def test_other_errors_are_not_its_business() -> None:
    with pytest.raises(RuntimeError, match="must match the size"), refusing_other_kernels():
        torch.zeros(2) + torch.zeros(3)
