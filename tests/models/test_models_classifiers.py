"""models/classifiers.py: cosine logits against NumPy and by hand, types under autocast, gradients."""

import numpy as np
import pytest
import torch

from moe_dist.models.classifiers import ClassifierKind, CosineClassifier, LinearClassifier


def build(kind: ClassifierKind, features: int, classes: int, scale: float) -> torch.nn.Module:
    return CosineClassifier(features, classes, scale) if kind == "cosine" else LinearClassifier(features, classes)


def test_cosine_by_hand() -> None:
    """Features (3, 4) have length 5: cosines 3/5 with (2, 0), 4/5 with (0, 1), -1 with (-3, -4); times 30."""
    classifier = CosineClassifier(2, 3, scale=30.0).double()
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, -4.0]]))
    logits = classifier(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    np.testing.assert_allclose(logits.detach().numpy(), [[18.0, 24.0, -30.0]], atol=1e-12)


def test_cosine_against_numpy() -> None:
    random = np.random.default_rng(0)
    features, weight = random.normal(size=(5, 7)), random.normal(size=(4, 7))
    classifier = CosineClassifier(7, 4, scale=12.5).double()
    classifier.weight.data = torch.from_numpy(weight)
    lengths = np.outer(np.linalg.norm(features, axis=1), np.linalg.norm(weight, axis=1))
    ours = classifier(torch.from_numpy(features)).detach().numpy()
    np.testing.assert_allclose(ours, 12.5 * (features @ weight.T) / lengths, rtol=1e-12)


def test_lengths_do_not_matter_and_a_zero_feature_is_undecided() -> None:
    classifier = CosineClassifier(6, 3, scale=30.0).double()
    features = torch.randn(4, 6, dtype=torch.float64)
    before = classifier(features)
    with torch.no_grad():
        classifier.weight.mul_(7)
    torch.testing.assert_close(classifier(features * 0.01), before)
    assert classifier(torch.zeros(1, 6, dtype=torch.float64)).tolist() == [[0.0, 0.0, 0.0]]


def test_fresh_cosine_weights_have_length_one() -> None:
    torch.testing.assert_close(CosineClassifier(64, 10, scale=30.0).weight.norm(dim=1), torch.ones(10))


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_gradients(kind: ClassifierKind) -> None:
    torch.manual_seed(0)
    classifier = build(kind, 5, 3, scale=4.0).double()
    features = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    names, values = zip(*classifier.named_parameters())

    def logits(features: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(classifier, dict(zip(names, values)), (features,))

    assert torch.autograd.gradcheck(logits, (features, *values))


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_autocast_changes_no_logit(kind: ClassifierKind) -> None:
    classifier = build(kind, 64, 100, scale=30.0)
    features = torch.randn(8, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = classifier(features)
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, classifier(features))


def test_linear_is_torchs() -> None:
    classifier = LinearClassifier(3, 2)
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 0.0]]))
        classifier.bias.copy_(torch.tensor([0.5, 0.0]))
    assert classifier(torch.tensor([[1.0, 1.0, 2.0]])).tolist() == [[9.5, -1.0]]
