"""ICL's rivals as methods: the terms of each by the references, training steps, both stages, refusals."""

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
from moe_dist.methods.longtail.config import BranchConfig
from moe_dist.methods.longtail.method import BranchMethod
from moe_dist.methods.phases import Progress
from moe_dist.methods.registry import method_class
from moe_dist.models.branches import BranchNetwork
from moe_dist.train.requirements import require_trainable
from tests.methods.branch_batches import SIDE, batch_of
from tests.reference import icl
from tests.reference import longtail as reference

CLASSES, COUNTS = 5, (50, 20, 9, 3, 1)
INFO = DatasetInfo(CLASSES, tuple("abcde"), SIDE, sum(COUNTS), COUNTS)
WITHOUT_COUNTS = DatasetInfo(CLASSES, tuple("abcde"), SIDE, 10)
RIVALS = ["cross_entropy", "focal", "balanced_softmax", "ldam_drw", "ride", "shike", "balpoe"]
NEED_COUNTS = {"balanced_softmax": "balanced softmax", "ldam_drw": "LDAM", "ride": "RIDE", "balpoe": "BalPoE"}
LABELS = [0, 0, 1, 3, 4, 4]


def rival(name: str, info: DatasetInfo = INFO, **settings: Any) -> BranchMethod:
    """The method called `name` on a network of width 2."""
    kind = method_class(name)
    method = kind(kind.Config.model_validate({"name": name, "network": {"width": 2}, **settings}), info)
    assert isinstance(method, BranchMethod)
    return method


def built(method: BranchMethod) -> BranchNetwork:
    return cast(BranchNetwork, method.build(IN_ONE_PROCESS, {}, seed=0))


def at(epoch: int, stage: str = "features") -> Progress:
    return Progress(stage, epoch, 200, 1)


def numbers(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: term.item() for name, term in terms.items()}


@pytest.mark.parametrize("name", ["ldam_drw", "ride"])
def test_weights_whose_epoch_never_comes_are_told(name: str) -> None:
    told = "samples are never weighed by their class: reweight_from = 160, and features.epochs = 160"
    assert rival(name, features={"epochs": 160}).config.notices() == (told,)
    assert not rival(name, features={"epochs": 161}).config.notices()


def weighted_ldam(logits: np.ndarray, labels: list[int]) -> float:
    """LDAM under deferred weights: the weighted mean over samples, summed over experts."""
    margins = [30 * margin for margin in reference.margins(COUNTS, 0.5)]
    loss = reference.ldam(logits, labels, margins).sum(1)
    weights = [reference.effective_weights(COUNTS, 0.9999)[label] for label in labels]
    return sum(weight * value for weight, value in zip(weights, loss)) / sum(weights)


def expected_terms(name: str, epoch: int, logits: np.ndarray, labels: list[int]) -> dict[str, float]:
    """The loss terms of a rival with its default settings, of the network's logits [B, M, C]."""
    experts = logits.shape[1]
    margins = [30 * margin for margin in reference.margins(COUNTS, 0.5)]
    ldam = reference.ldam(logits, labels, margins).sum(1).mean() if epoch < 160 else weighted_ldam(logits, labels)
    temperatures = [1.0] * CLASSES if epoch < 160 else reference.ride_temperatures(COUNTS, 1.0, 0.05)
    if name == "shike":
        terms = {"cross_entropy": icl.cross_entropies(logits, labels).sum(1).mean()}
        if experts > 1:
            terms["mutual"] = reference.mutual_divergence(logits).mean() / CLASSES
            terms["hard_negatives"] = 10 * reference.hard_negatives(logits, labels).mean() / CLASSES
        return terms
    if name == "ride":
        return {"ldam": ldam, "diversity": -0.2 * reference.ride_diversity(logits, temperatures).mean()}
    lambdas = {1: [0.0], 3: [1.0, 0.0, -1.0]}[experts]
    return {
        "cross_entropy": {"cross_entropy": icl.cross_entropies(logits, labels).sum(1).mean()},
        "focal": {"focal": reference.focal(logits, labels, 2.0).sum(1).mean()},
        "balanced_softmax": {"balanced_softmax": reference.balanced_softmax(logits, labels, COUNTS).sum(1).mean()},
        "ldam_drw": {"ldam": ldam},
        "balpoe": {"balpoe": reference.balpoe(logits, labels, COUNTS, lambdas).mean()},
    }[name]


@pytest.mark.parametrize("labels", [LABELS, [2] * 6], ids=["several classes", "one class"])
@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize("name", RIVALS)
def test_terms_follow_the_references(name: str, experts: int, labels: list[int]) -> None:
    """In the first epoch, and around the one from which LDAM and RIDE re-weigh."""
    method = rival(name, experts=experts)
    network, batch = built(method).eval(), batch_of(labels)
    logits = network(batch.images).logits.detach().double().numpy()
    for epoch in (0, 159, 160):
        terms = numbers(method.loss(network, batch, at(epoch)))
        assert terms == pytest.approx(expected_terms(name, epoch, logits, labels), rel=2e-4, abs=1e-5)


@pytest.mark.parametrize("name", RIVALS)
def test_padding_is_in_no_term(name: str) -> None:
    method = rival(name)
    network = built(method).eval()
    for epoch in (0, 180):
        whole, padded = (method.loss(network, batch_of(LABELS, padding), at(epoch)) for padding in (0, 3))
        assert numbers(padded) == pytest.approx(numbers(whole), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", RIVALS)
def test_two_steps_of_each_stage_lower_its_loss(name: str) -> None:
    """Stage two trains the fresh classifiers alone."""
    method = rival(name, classifiers={"learning_rate": 0.001}, features={"learning_rate": 0.001})
    network, batch = built(method), batch_of(LABELS)
    for stage in method.stages():
        before = {key: tensor.clone() for key, tensor in network.named_parameters()}
        engine = LocalEngine(
            network, stage.optimisers, accumulate=1, clip_norm=None, device=torch.device("cpu"), bf16=False
        )
        method.set_training(network, stage.name)
        objectives = []
        for _ in range(3):
            objective = torch.stack(list(method.loss(network, batch, at(0, stage.name)).values())).sum()
            engine.backward(objective)
            engine.step()
            objectives.append(objective.item())
        assert objectives[2] < objectives[0]
        changed = {key for key, tensor in network.named_parameters() if not torch.equal(tensor, before[key])}
        fresh = {f"experts.members.{expert}.classifiers.1.weight" for expert in range(3)}
        assert changed == (fresh if stage.name == "classifiers" else before.keys() - fresh)


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("experts", [1, 3])
def test_prediction_is_the_mean_of_the_logits(name: str, experts: int) -> None:
    method = rival(name, experts=experts)
    network, images = built(method).eval(), batch_of([0, 1]).images
    prediction = method.predict(network, images)
    torch.testing.assert_close(prediction.log_probs, network(images).logits.mean(1).log_softmax(1))
    assert prediction.experts is not None and prediction.experts.shape == (2, experts, CLASSES)


@pytest.mark.parametrize("name", [name for name in RIVALS if method_class(name).mixes_labels])
def test_mixed_images_share_their_labels(name: str) -> None:
    """By hand: 0.3 of the loss with one label and 0.7 with the other."""
    method = rival(name, classifiers={})
    network, own = built(method).eval(), batch_of([0, 1, 4])
    partner, share = torch.tensor([3, 1, 0]), torch.full((3,), 0.3)
    other = Batch(own.images, partner, own.samples, own.weight)
    mixed = Batch(own.images, own.labels, own.samples, own.weight, partner=partner, share=share)
    for stage in ("features", "classifiers"):
        terms, first, second = (numbers(method.loss(network, batch, at(0, stage))) for batch in (mixed, own, other))
        assert terms == pytest.approx({key: 0.3 * first[key] + 0.7 * second[key] for key in terms}, rel=1e-5)


@pytest.mark.parametrize("name", RIVALS)
def test_class_counts_are_in_no_checkpoint(name: str) -> None:
    """They are the dataset's, and would go stale beside another one's weights."""
    network = built(rival(name, classifiers={}))
    assert network.get_buffer("class_counts").tolist() == list(COUNTS)
    assert "class_counts" not in network.state_dict()


def test_stages_are_one_of_200_epochs_or_two_of_180_and_20() -> None:
    epochs = {name: [stage.epochs for stage in rival(name).stages()] for name in RIVALS}
    assert epochs == {name: [180, 20] if name == "shike" else [200] for name in RIVALS}


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"experts": 0}, r"method\.experts: input should be greater than or equal to 1, got 0"),
        ({"gama": 1}, r"method\.gama: unknown field"),
        ({"features": {"epochs": 0}}, r"method\.features\.epochs: input should be greater than or equal to 1"),
    ],
)
def test_bad_settings_are_a_sentence(name: str, setting: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_job({"name": "x", "kind": "train", "method": {"name": name, **setting}}, "job.yaml")


@pytest.mark.parametrize(
    ("name", "setting", "sentence"),
    [
        ("focal", {"gamma": -1}, r"method\.gamma: .*greater than or equal to 0, got -1"),
        ("ldam_drw", {"margin": 1}, r"method\.margin: .*less than 1"),
        ("ldam_drw", {"beta": 1.0}, r"method\.beta: .*less than 1"),
        ("ride", {"temperature": 0}, r"method\.temperature: .*greater than 0"),
        ("ride", {"temperature_factor": 1}, r"method\.temperature_factor: .*less than 1"),
        ("ride", {"reweight_from": -1}, r"method\.reweight_from: .*greater than or equal to 0"),
        ("balpoe", {"spread": -1}, r"method\.spread: .*greater than or equal to 0"),
    ],
)
def test_a_rivals_own_bad_settings_are_a_sentence(name: str, setting: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_job({"name": "x", "kind": "train", "method": {"name": name, **setting}}, "job.yaml")


@pytest.mark.parametrize(("name", "words"), NEED_COUNTS.items())
def test_a_loss_without_its_class_counts_is_a_sentence(name: str, words: str) -> None:
    with pytest.raises(UserError, match=f"method {name}: the dataset tells no class counts, which {words} needs"):
        rival(name, WITHOUT_COUNTS)
    empty = DatasetInfo(CLASSES, tuple("abcde"), SIDE, 10, (5, 3, 1, 0, 1))
    with pytest.raises(UserError, match=rf"class d has no training image, and {words} .*lower data\.imbalance"):
        rival(name, empty)


@pytest.mark.parametrize("name", [name for name in RIVALS if name not in NEED_COUNTS])
def test_others_need_counts_for_a_second_stage_alone(name: str) -> None:
    assert len(rival(name, WITHOUT_COUNTS, classifiers=None).stages()) == 1
    with pytest.raises(UserError, match=r"logit adjustment .* set method\.classifiers to null"):
        rival(name, WITHOUT_COUNTS, classifiers={})


@pytest.mark.parametrize("name", ["ldam_drw", "ride"])
def test_margins_on_linear_classifiers_are_a_sentence(name: str) -> None:
    with pytest.raises(UserError, match=r"margins are differences of cosines.*set it to cosine"):
        rival(name, network={"width": 2, "classifier": "linear"})


def test_mixup_where_a_loss_has_no_place_for_it_is_a_sentence() -> None:
    job = parse_job({"name": "x", "kind": "train", "method": {"name": "shike"}}, "job.yaml")
    method = rival("shike", features={"augment": {"mixup": 0.4}})
    assert isinstance(method.config, BranchConfig)
    with pytest.raises(UserError, match="shike has no loss for images of two labels"):
        require_trainable(job, method, validation_images=0)
