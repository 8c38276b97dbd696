"""methods/dfcp/dispatch.py and the losses over the experts that saw a sample, against tests/reference/dfcp.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moe_dist.data.batch import Batch, DatasetInfo
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.methods.dfcp import dispatch, losses
from moe_dist.methods.dfcp.config import DfcpConfig
from moe_dist.methods.dfcp.method import Dfcp
from moe_dist.methods.phases import Losses, Progress, StepResult
from moe_dist.models.experts import Experts
from tests.reference import dfcp as reference

EXPERTS = 5


def doubles(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, shape)


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.3, 0.9, 1.0])
def test_portions_are_balanced_over_clusters_and_have_the_mean_that_is_asked_for(fraction: float) -> None:
    labels = np.repeat([0, 1, 3, 4], [50, 3, 20, 7])
    found = dispatch.portions(labels, fraction)
    np.testing.assert_allclose(found, reference.portions(labels, fraction), atol=1e-6)
    assert found.mean() == pytest.approx(fraction, abs=1e-6)


def test_who_sees_a_sample_follows_the_reference() -> None:
    gate, labels = doubles(40, EXPERTS), np.arange(40) % EXPERTS
    drawn = doubles(40, EXPERTS, seed=1) > 1.5
    ours = dispatch.seen(torch.from_numpy(labels), torch.from_numpy(gate), 2, torch.from_numpy(drawn))
    assert np.array_equal(ours.numpy(), reference.seen(labels, gate, 2, drawn))
    assert dispatch.seen(torch.from_numpy(labels), torch.from_numpy(gate), 99, torch.from_numpy(drawn)).all()


def test_draws_depend_on_seed_epoch_and_sample_alone_and_are_as_frequent_as_asked() -> None:
    samples, portion = torch.arange(4000), torch.full((4000,), 0.1)
    drawn = dispatch.others(portion, EXPERTS, 0, 3, samples)
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dispatch.others(portion, EXPERTS, 0, 3, samples[order]), drawn[order])
    for seed, epoch in ((1, 3), (0, 4)):
        assert not torch.equal(dispatch.others(portion, EXPERTS, seed, epoch, samples), drawn)
    # 20,000 draws of probability 0.1: five standard deviations are 0.0106.
    assert abs(drawn.double().mean() - 0.1) < 0.0106


def test_losses_are_over_the_experts_that_saw_a_sample() -> None:
    gate, logits, own = doubles(30, EXPERTS), doubles(30, EXPERTS, seed=1), np.arange(EXPERTS)
    labels = np.arange(30) % EXPERTS
    seen = reference.seen(labels, gate, 1, doubles(30, EXPERTS, seed=2) > 1)
    probs, combined, alone = reference.conditional_losses(gate, logits, seen, own, EXPERTS, labels)
    tensors = [torch.from_numpy(array) for array in (gate, logits, own, seen, labels)]
    ours = losses.mixture_log_probs(tensors[0], tensors[1], tensors[2], EXPERTS, seen=tensors[3])
    np.testing.assert_allclose(ours.exp(), probs, rtol=1e-10)
    np.testing.assert_allclose(losses.combined_loss(ours, tensors[4]), combined, rtol=1e-10)
    np.testing.assert_allclose(losses.expert_loss(tensors[1], tensors[4], tensors[3]), alone, rtol=1e-10)


def test_gradients_reach_only_experts_and_gate_weights_that_took_part() -> None:
    gate = torch.from_numpy(doubles(6, EXPERTS)).requires_grad_()
    logits = torch.from_numpy(doubles(6, EXPERTS, seed=1)).requires_grad_()
    labels = torch.arange(6) % EXPERTS
    seen = dispatch.seen(labels, gate, 1, torch.zeros(6, EXPERTS, dtype=torch.bool))
    log_probs = losses.mixture_log_probs(gate, logits, torch.arange(EXPERTS), EXPERTS, seen=seen)
    (losses.combined_loss(log_probs, labels) + losses.expert_loss(logits, labels, seen)).sum().backward()
    for gradient in (gate.grad, logits.grad):
        assert gradient is not None and torch.isfinite(gradient).all()
        assert torch.equal(gradient != 0, seen & (gradient != 0)) and (gradient[seen] != 0).any()


def test_an_expert_computes_its_own_samples_alone() -> None:
    """Same outputs as all experts on all samples; the second expert gets none, and has gradients of 0."""
    experts = Experts([lambda: nn.Sequential(nn.Flatten(), nn.Linear(8, 2))] * 3)
    inputs = torch.rand(7, 2, 4)
    chosen = torch.tensor([[1, 0, 1]] * 4 + [[0, 0, 1]] * 3).bool()
    counted: list[int] = []
    for member in experts.members.values():
        member.register_forward_pre_hook(lambda module, arguments: counted.append(len(arguments[0])))
    outputs = experts.of_chosen(inputs, chosen)
    assert counted == [4, 0, 7]
    everything = torch.stack(experts(inputs), 1)
    assert torch.equal(outputs != 0, chosen[:, :, None].expand_as(outputs))
    torch.testing.assert_close(outputs[chosen], everything[chosen])
    outputs.sum().backward()
    for name, parameter in experts.named_parameters():
        assert parameter.grad is not None and parameter.grad.any() == ("members.1." not in name), name


def small(**joint: object) -> Dfcp:
    narrow = {"conv1": 2, "conv2": 4, "fc1": 8, "fc2": 8}
    gate = {"filters": [4], "hidden": [8], "dropout": 0.0}
    config = DfcpConfig.model_validate({"experts": narrow, "gate": gate, "joint": joint, "alone": {"epochs": 0}})
    return Dfcp(config, DatasetInfo(EXPERTS, tuple("abcde"), 16, 40))


def batch_of(count: int, columns: dict[str, Tensor]) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 16, 16, generator=generator)
    return Batch(images, torch.arange(count) % EXPERTS, torch.arange(count), torch.full((count,), 1 / count),
                 columns=columns)  # fmt: skip


def test_the_method_dispatches_as_its_job_says() -> None:
    """With everything drawn, conditional dispatch has the losses of `all`; with nothing, two experts see a sample."""
    whole, conditional = small(dispatch="all"), small(preferred=1)
    network = conditional.build(IN_ONE_PROCESS, {}, 0)
    progress = Progress("joint", 0, 1, 1)
    everything = batch_of(20, {dispatch.PORTION: torch.ones(20)})
    expected = whole.loss(network, everything, progress)
    found = conditional.loss(network, everything, progress)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert isinstance(found, Losses) and found.logged["experts_a_sample"] == EXPERTS
    few = conditional.loss(network, batch_of(20, {dispatch.PORTION: torch.zeros(20)}), progress)
    assert isinstance(few, Losses) and 1 <= few.logged["experts_a_sample"] <= 2


def test_the_training_set_carries_the_portions_of_the_pseudo_labels() -> None:
    results = {
        "split": StepResult({}, {"trusted": np.arange(5), "clustered": np.arange(5, 40), "labels": np.arange(5)}),
        "pseudo_labels": StepResult({}, {"merged": np.array([0] * 30 + [1, 2, 3, 4, -1])}),
    }
    method = small(others_fraction=0.2)
    labels = method.visible_labels(results, np.full(40, -1))
    found = method.training_set(results, labels, np.arange(40))
    assert found.columns[dispatch.PORTION].tolist() == dispatch.portions(found.labels, 0.2).tolist()
    assert not small(dispatch="all").training_set(results, labels, np.arange(40)).columns
