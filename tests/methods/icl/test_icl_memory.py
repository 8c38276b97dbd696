"""methods/icl/memory.py against the loops of tests/reference/icl.py: absent classes, padding, one class alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moe_dist.methods.icl.memory import Memory, update_confusion, update_prototypes
from tests.reference import icl as reference

EXPERTS, CLASSES, WIDTH = 3, 5, 4
BATCHES = {
    "two classes absent": [0, 1, 1, 3, 0, 0, 1, 3],
    "one class alone": [2] * 8,
    "one sample a class": [4, 3, 2, 1, 0, 0, 0, 0],
}


@pytest.mark.parametrize("labels", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("padding", [0, 3, 8])
@pytest.mark.parametrize("momentum", [0.1, 0.9])
def test_updates_follow_eq_4_and_5(labels: list[int], padding: int, momentum: float) -> None:
    random = np.random.default_rng(0)
    confusion, prototypes = random.random((EXPERTS, CLASSES, CLASSES)), random.normal(size=(EXPERTS, CLASSES, WIDTH))
    features, predicted = random.normal(size=(8, EXPERTS, WIDTH)), random.integers(0, CLASSES, (8, EXPERTS))
    valid = [row < 8 - padding for row in range(8)]
    batch = [torch.from_numpy(predicted), torch.tensor(labels), torch.tensor(valid)]
    ours = torch.from_numpy(confusion.copy())
    update_confusion(ours, *batch, momentum)
    expected = reference.confusion_after(confusion, predicted, labels, valid, momentum)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)
    ours = torch.from_numpy(prototypes.copy())
    update_prototypes(ours, torch.from_numpy(features), *batch[1:], momentum)
    expected = reference.prototypes_after(prototypes, features, labels, valid, momentum)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)


def test_by_hand() -> None:
    """alpha = beta = 0.75. Expert 0 takes one of the two samples of class 0 for class 1, expert 1 takes both for 2.

    Confusion: 0.25 * 1 and 0.25 * 2. Prototype of class 0: 0.25 * (1 + 3) / 2 = 0.5; the others stay zero.
    """
    memory = Memory(experts=2, classes=3, width=1)
    logits = torch.zeros(2, 2, 3)
    logits[0, 0, 1] = logits[1, 0, 0] = logits[0, 1, 2] = logits[1, 1, 2] = 1
    features = torch.tensor([[[1.0], [1.0]], [[3.0], [3.0]]])
    memory.update(features, logits, torch.tensor([0, 0]), torch.tensor([True, True]), 0.75, 0.75)
    assert memory.confusion.tolist() == [[[0, 0.25, 0], [0] * 3, [0] * 3], [[0, 0, 0.5], [0] * 3, [0] * 3]]
    assert memory.prototypes.tolist() == [[[0.5], [0], [0]]] * 2


def test_a_class_is_never_confused_with_itself() -> None:
    memory = Memory(experts=1, classes=4, width=2)
    labels = torch.arange(4)
    logits = torch.eye(4)[:, None]
    memory.update(torch.ones(4, 1, 2), logits, labels, torch.ones(4, dtype=torch.bool), 0.5, 0.5)
    assert memory.confusion.abs().sum() == 0


def test_padding_alone_leaves_prototypes_bit_identical() -> None:
    memory = Memory(experts=2, classes=3, width=4)
    memory.prototypes.normal_()
    before = memory.prototypes.clone()
    nothing = torch.zeros(5, dtype=torch.bool)
    memory.update(torch.randn(5, 2, 4), torch.randn(5, 2, 3), torch.randint(3, (5,)), nothing, 0.9, 0.9)
    assert torch.equal(memory.prototypes, before) and memory.confusion.abs().sum() == 0


def test_with_its_diagonal_a_class_is_also_predicted_rightly() -> None:
    """Of two samples of class 0, one is taken for class 1: half of 0.5 * 2 each."""
    confusion = torch.zeros(1, 3, 3)
    predicted, labels = torch.tensor([[1], [0]]), torch.tensor([0, 0])
    update_confusion(confusion, predicted, labels, torch.tensor([True, True]), 0.5, with_diagonal=True)
    assert confusion.tolist() == [[[0.5, 0.5, 0], [0] * 3, [0] * 3]]
