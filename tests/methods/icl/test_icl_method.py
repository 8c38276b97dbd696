"""ICL as a method: which terms when, what each stage trains, padding, refusals."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from moe_dist.data.batch import Batch, DatasetInfo
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.engine.engine import LocalEngine
from moe_dist.errors import UserError
from moe_dist.job import parse_job
from moe_dist.methods.icl.config import IclConfig
from moe_dist.methods.icl.memory import Memory
from moe_dist.methods.icl.method import Icl
from moe_dist.methods.phases import Progress
from moe_dist.models.branches import BranchNetwork
from tests.methods.branch_batches import SIDE, batch_of
from tests.reference import icl as reference

CLASSES, COUNTS = 5, (50, 20, 9, 3, 1)
INFO = DatasetInfo(CLASSES, tuple("abcde"), SIDE, sum(COUNTS), COUNTS)
EVERYWHERE = {"t_ad": 10, "t_cl": 0}


def icl(**settings: Any) -> Icl:
    """The method with a network of width 2; `settings` are fields of its configuration."""
    return Icl(IclConfig.model_validate({"network": {"width": 2}, **settings}), INFO)


def built(method: Icl) -> BranchNetwork:
    network = method.build(IN_ONE_PROCESS, {}, seed=0)
    assert isinstance(network, BranchNetwork)
    return network


def at(epoch: int, stage: str = "features") -> Progress:
    return Progress(stage, epoch, 180, 1)


def step(method: Icl, network: BranchNetwork, batch: Batch, number: int = 0, epoch: int = 0) -> dict[str, Tensor]:
    """One update of stage `number`, as the loop makes it; the loss terms."""
    stage = method.stages()[number]
    engine = LocalEngine(
        network, stage.optimisers, accumulate=1, clip_norm=None, device=torch.device("cpu"), bf16=False
    )
    method.set_training(network, stage.name)
    terms = method.loss(network, batch, at(epoch, stage.name))
    engine.backward(torch.stack(list(terms.values())).sum())
    engine.step()
    return terms


def names_of(changed: dict[str, Tensor], network: BranchNetwork) -> set[str]:
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, changed[name])}


def copy_of(network: BranchNetwork) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    ("settings", "epoch", "terms"),
    [
        ({}, 0, {"parallel", "distill", "diversity"}),
        ({}, 29, {"parallel", "distill", "diversity"}),
        ({}, 30, {"parallel", "distill"}),
        ({}, 119, {"parallel", "distill"}),
        ({}, 120, {"parallel", "distill", "contrast"}),
        ({"t_ad": 150}, 130, {"parallel", "distill", "diversity", "contrast"}),
        ({"t_ad": 0, "t_cl": 0}, 0, {"parallel", "distill", "contrast"}),
        ({"dol": False}, 0, {"parallel", "distill"}),
        ({"dol": False}, 150, {"parallel", "distill"}),
        ({"col": False}, 0, {"cross_entropy", "diversity"}),
        ({"col": False, "dol": False}, 0, {"cross_entropy"}),
        ({"experts": 1}, 0, {"parallel"}),
        ({"experts": 1}, 150, {"parallel", "contrast"}),
        ({"experts": 1, "col": False, "dol": False}, 0, {"cross_entropy"}),
    ],
)
def test_terms_by_epoch_and_switch(settings: dict[str, Any], epoch: int, terms: set[str]) -> None:
    method = icl(**settings)
    assert method.loss(built(method), batch_of([0, 0, 1, 3]), at(epoch)).keys() == terms


@pytest.mark.parametrize("labels", [[0, 0, 1, 3, 4, 4], [2] * 6], ids=["several classes", "one class"])
@pytest.mark.parametrize("experts", [1, 2, 3])
def test_terms_follow_the_equations(labels: list[int], experts: int) -> None:
    """Eq 12 of the network's own features and logits; the memory has learnt from the same batch before."""
    method = icl(experts=experts, **EVERYWHERE)
    network = built(method).eval()
    batch = batch_of(labels)
    features, logits = (output.detach().double().numpy() for output in network(batch.images))
    valid, zeros = [True] * len(labels), np.zeros
    predicted = logits.argmax(2)
    confusion = reference.confusion_after(zeros((experts, CLASSES, CLASSES)), predicted, labels, valid, 0.9)
    prototypes = reference.prototypes_after(zeros((experts, CLASSES, 8)), features, labels, valid, 0.9)
    means = reference.cross_entropies(logits, labels).mean(0)
    expected = {
        "parallel": experts * reference.parallel(means, 1e-8),
        "contrast": reference.contrast(features, labels, confusion, prototypes, 7, 0.07).mean(),
    }
    if experts > 1:
        expected |= {
            "distill": reference.distillation(logits).mean(),
            "diversity": reference.diversity(features).mean(),
        }
    terms = method.loss(network, batch, at(0))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_positive_cosines_alone_where_asked_for() -> None:
    method = icl(diversity_cosines="positive", **EVERYWHERE)
    network, batch = built(method).eval(), batch_of([0, 0, 1, 3, 4, 4])
    features = network(batch.images).features.detach().double().numpy()
    assert reference.diversity(features).mean() != pytest.approx(reference.diversity(features, least=0).mean())
    expected = reference.diversity(features, least=0).mean()
    assert method.loss(network, batch, at(0))["diversity"].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_without_col_the_cross_entropies_are_summed() -> None:
    method = icl(col=False, dol=False)
    network, batch = built(method).eval(), batch_of([0, 1, 4])
    logits = network(batch.images).logits.detach().double().numpy()
    expected = reference.cross_entropies(logits, [0, 1, 4]).mean(0).sum()
    assert method.loss(network, batch, at(0))["cross_entropy"].item() == pytest.approx(expected, rel=1e-5)


def test_the_parallel_loss_of_one_expert_is_its_cross_entropy() -> None:
    one, plain = icl(experts=1), icl(experts=1, col=False)
    network, batch = built(one).eval(), batch_of([0, 1, 4])
    parallel = one.loss(network, batch, at(50))["parallel"]
    torch.testing.assert_close(parallel, plain.loss(network, batch, at(50))["cross_entropy"])


def test_contrast_can_train_alone_from_its_epoch_on() -> None:
    """As in the released code: what came before counts nothing from t_cl on, and the classifiers only decay."""
    plain, alone = icl(t_ad=180), icl(t_ad=180, contrast_alone=True)
    network, batch = built(plain).eval(), batch_of([0, 0, 1, 3])
    before = {name: term.item() for name, term in alone.loss(network, batch, at(119)).items()}
    assert before.keys() == {"parallel", "distill", "diversity"} and before["parallel"] > 0

    fresh, other = built(plain).eval(), built(alone).eval()
    expected, terms = plain.loss(fresh, batch, at(120)), alone.loss(other, batch, at(120))
    assert terms.keys() == {"contrast"} < expected.keys()
    torch.testing.assert_close(terms["contrast"], expected["contrast"])

    network = built(alone)
    old = copy_of(network)
    step(alone, network, batch_of([0, 0, 1, 3]), epoch=120)
    stage, name = alone.stages()[0], "experts.members.0.classifiers.0.weight"
    optimiser = stage.optimisers[""]
    assert optimiser is not None
    decayed = old[name] * (1 - optimiser.learning_rate * optimiser.weight_decay)
    torch.testing.assert_close(network.state_dict()[name], decayed)


@pytest.mark.parametrize("negatives", ["sum", "mean"])
def test_negatives_of_the_contrast_are_a_setting(negatives: str) -> None:
    """Of the network's own features, with two classes that class 0 was taken for."""
    method = icl(**EVERYWHERE, contrast_negatives=negatives)
    network, labels = built(method).eval(), [0, 1, 2, 3, 4, 4]
    batch = batch_of(labels)
    features, logits = (output.detach().double().numpy() for output in network(batch.images))
    valid, predicted = [True] * len(labels), logits.argmax(2)
    confusion = reference.confusion_after(np.zeros((3, CLASSES, CLASSES)), predicted, labels, valid, 0.9)
    prototypes = reference.prototypes_after(np.zeros((3, CLASSES, 8)), features, labels, valid, 0.9)
    confusion[:, 0, 1:3] += 0.05  # two negatives of class 0, so that the mean differs from the sum
    cast(Memory, network.get_submodule("memory")).confusion[:, 0, 1:3] += 0.05 / 0.9
    expected = reference.contrast(features, labels, confusion, prototypes, 7, 0.07, negatives).mean()
    assert method.loss(network, batch, at(0))["contrast"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("t_cl", "dol", "told"), [(119, True, 0), (120, True, 1), (120, False, 0)])
def test_a_contrast_whose_epoch_never_comes_is_told(t_cl: int, dol: bool, told: int) -> None:
    assert len(icl(t_cl=t_cl, dol=dol, features={"epochs": 120}).config.notices()) == told


def test_times_experts_is_a_setting() -> None:
    network, batch = built(icl()).eval(), batch_of([0, 1, 4])
    with_factor, without = (
        icl(parallel_times_experts=setting).loss(network, batch, at(50))["parallel"] for setting in (True, False)
    )
    torch.testing.assert_close(with_factor, 3 * without)


def test_padding_is_in_no_term_and_in_no_memory() -> None:
    method = icl(**EVERYWHERE)
    whole, padded = built(method).eval(), built(method).eval()
    expected = method.loss(whole, batch_of([0, 0, 1, 3]), at(0))
    terms = method.loss(padded, batch_of([0, 0, 1, 3], padding=3), at(0))
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name], msg=name)
    for name in ("memory.confusion", "memory.prototypes"):
        torch.testing.assert_close(padded.state_dict()[name], whole.state_dict()[name])
    assert padded.state_dict()["memory.prototypes"][:, 2].abs().sum() == 0, "the padding's class"


def test_stage_one_trains_all_but_the_fresh_classifiers() -> None:
    method = icl(**EVERYWHERE)
    network = built(method)
    before = copy_of(network)
    step(method, network, batch_of([0, 0, 1, 3, 4, 2]))
    changed = names_of(before, network)
    fresh = {f"experts.members.{expert}.classifiers.1.weight" for expert in range(3)}
    assert not changed & fresh and "memory.prototypes" in changed
    assert {name for name, _ in network.named_parameters()} - fresh <= changed


def test_stage_two_trains_the_fresh_classifiers_alone() -> None:
    method = icl()
    network = built(method)
    step(method, network, batch_of([0, 0, 1, 3, 4, 2]))
    before = copy_of(network)
    for _ in range(2):
        terms = step(method, network, batch_of([0, 0, 1, 3, 4, 2]), number=1)
        network.eval()  # as the validation after an epoch leaves it
    changed = names_of(before, network)
    assert terms.keys() == {"logit_adjusted"}
    assert changed == {"fresh", *(f"experts.members.{expert}.classifiers.1.weight" for expert in range(3))}


def test_stage_two_follows_eq_13() -> None:
    method = icl()
    network, batch = built(method), batch_of([0, 1, 4])
    method.set_training(network, "classifiers")
    logits = network(batch.images).logits.detach().double().numpy()
    expected = reference.logit_adjusted(logits, [0, 1, 4], COUNTS).mean()
    loss = method.loss(network, batch, at(3, "classifiers"))["logit_adjusted"]
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_without_a_second_stage_no_counts_are_needed() -> None:
    info = DatasetInfo(CLASSES, tuple("abcde"), SIDE, 10)
    method = Icl(IclConfig(classifiers=None), info)
    assert [stage.name for stage in method.stages()] == ["features"]


def test_stages_are_the_papers() -> None:
    first, second = icl().stages()
    assert (first.epochs, second.epochs, first.batch_size) == (180, 20, 128)
    assert first.schedule.kind == second.schedule.kind == "cosine"
    (optimiser,) = {config for config in first.optimisers.values() if config}
    assert (optimiser.kind, optimiser.learning_rate, optimiser.momentum, optimiser.weight_decay) == (
        *("sgd", 0.05),
        *(0.9, 5e-4),
    )


def test_prediction_is_the_mean_of_the_logits() -> None:
    method = icl()
    network, images = built(method).eval(), batch_of([0, 1]).images
    prediction, logits = method.predict(network, images), network(images).logits
    torch.testing.assert_close(prediction.log_probs, logits.mean(1).log_softmax(1))
    assert prediction.experts is not None
    torch.testing.assert_close(prediction.experts, logits.log_softmax(2))


def test_losses_are_float32_under_bf16() -> None:
    method = icl(**EVERYWHERE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = method.loss(built(method), batch_of([0, 0, 1, 3]), at(0))
    assert {term.dtype for term in terms.values()} == {torch.float32}


def test_gradients_of_each_branchs_last_convolution_are_compared() -> None:
    method = icl()
    network = built(method)
    weights = [network.get_parameter(f"experts.members.{expert}.stage.4.conv2.weight") for expert in range(3)]
    compared = method.compared_parameters(network)
    assert all(ours is weight for ours, weight in zip(compared, weights)) and len(compared) == 3


def test_the_memory_is_in_the_state_of_the_network() -> None:
    network = built(icl())
    assert isinstance(network.get_submodule("memory"), Memory)
    assert {"memory.confusion", "memory.prototypes"} <= network.state_dict().keys()
    assert not any(name.startswith("memory") for name in built(icl(dol=False)).state_dict())


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"experts": 0}, r"method\.experts: input should be greater than or equal to 1, got 0"),
        ({"t_cl": -1}, r"method\.t_cl: input should be greater than or equal to 0, got -1"),
        ({"t_ad": -2}, r"method\.t_ad: input should be greater than or equal to 0, got -2"),
        ({"confused_classes": 0}, r"method\.confused_classes: .* greater than or equal to 1"),
        ({"temperature": 0}, r"method\.temperature: input should be greater than 0, got 0"),
        ({"confusion_momentum": 1.5}, r"method\.confusion_momentum: input should be less than 1"),
        ({"t_contrast": 3}, r"method\.t_contrast: unknown field"),
    ],
)
def test_bad_settings_are_a_sentence(setting: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_job({"name": "x", "kind": "train", "method": {"name": "icl", **setting}}, "job.yaml")


def test_no_class_counts_is_a_sentence() -> None:
    with pytest.raises(UserError, match="tells no class counts, which logit adjustment"):
        Icl(IclConfig(), DatasetInfo(CLASSES, tuple("abcde"), SIDE, 10))


def test_a_class_without_training_images_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"class d has no training image.*lower data\.imbalance"):
        Icl(IclConfig(), DatasetInfo(CLASSES, tuple("abcde"), SIDE, 10, (5, 3, 1, 0, 1)))
