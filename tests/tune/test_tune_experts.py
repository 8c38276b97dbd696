"""Trials of DFCP's experts on digits: as alone.py trains them, in banks or not; what fails costs the others nothing."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from moe_dist.data.batch import DatasetInfo, TrainingSet
from moe_dist.methods.dfcp.config import AloneConfig, ExpertConfig
from moe_dist.methods.dfcp.search import DfcpExpertSearch, f1
from moe_dist.methods.search import ExpertTrial, SearchData
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.data import DataConfig
from moe_dist.settings.tune import TuneConfig
from moe_dist.tune.expert_trials import ExpertBackend
from moe_dist.tune.trials import Round, Trial, TrialBatch
from tests.small_digits import SmallDigits

SIDE, CLASSES, CPU = 16, 3, torch.device("cpu")
ALONE = AloneConfig(epochs=3, others_fraction=0.5, augment=AugmentConfig(shift=0.1))
EXPERT = ExpertConfig(conv1=3, conv2=5, fc1=12, fc2=8, optimiser="adam", learning_rate=0.01, batch_size=16)


@pytest.fixture(scope="module")
def data() -> SearchData:
    digits, train, val = SmallDigits(CLASSES), np.arange(240), np.arange(240, 400)
    return SearchData(
        config=DataConfig(image_size=SIDE),
        train=digits,
        training_set=TrainingSet(train, digits.labels[train]),
        val=digits,
        val_samples=val,
        val_labels=digits.labels[val],
    )


def backend(data: SearchData, **settings) -> ExpertBackend:
    search = DfcpExpertSearch((EXPERT,) * CLASSES, ALONE)
    return ExpertBackend(search, data, TuneConfig(**{"epochs": 3} | settings), CPU)


def two_experts(*rates: float) -> Round:
    trials = tuple(Trial(number, {"learning_rate": rate, "conv1": 3 + number}) for number, rate in enumerate(rates))
    return Round(1, (TrialBatch("0", trials, 5, {}), TrialBatch("2", trials[:1], 5, {})))


def test_a_bank_gives_what_one_after_another_gives(data):
    work = two_experts(0.01, 0.003)
    together = backend(data).run(work)
    alone = backend(data, backend="process").run(work)
    for ours, theirs in zip(chain(*together), chain(*alone)):
        assert [point.epoch for point in ours.curve] == [1, 2, 3]
        assert [point.score for point in ours.curve] == pytest.approx([point.score for point in theirs.curve], abs=0.02)
        assert [point.loss for point in ours.curve] == pytest.approx([point.loss for point in theirs.curve], abs=1e-3)


def test_a_trial_is_trained_as_the_stage_of_experts_alone_trains(data):
    """Weights after three epochs of a trial beside those that the step leaves."""
    from moe_dist.methods.dfcp.alone import expert_weights, train_experts_alone
    from moe_dist.methods.dfcp.config import DfcpConfig
    from moe_dist.methods.phases import StepResult, Workspace

    class Here:
        device = CPU

        def progress(self, done: float, total: float) -> None:
            """Nobody looks."""

    numbers = data.training_set.samples
    results = {
        "split": StepResult({}, {"trusted": numbers[::2], "clustered": numbers[1::2]}),
        "pseudo_labels": StepResult({}, {"merged": data.training_set.labels[1::2]}),
    }
    info = DatasetInfo(CLASSES, tuple("012"), SIDE, len(numbers))
    labels = np.full(len(data.train), -1)
    labels[numbers[::2]] = data.training_set.labels[::2]
    workspace = Workspace(
        info, data.config, 5, data.train, labels, np.full(len(labels), -1), list, numbers, None, results,
        {}.__getitem__,
        lambda function, items, common=None: (function(common, item, Here()) for item in items),
    )  # fmt: skip
    config = DfcpConfig(experts=(EXPERT,) * CLASSES, alone=ALONE)
    step = train_experts_alone(config, info).run(workspace)
    search = DfcpExpertSearch(config.experts, ALONE)
    trials = search.start([ExpertTrial(1, EXPERT)], 5, data, CPU, together=False)
    for _ in range(3):
        trials.train_epoch()
    found = trials.networks[0].state_dict()
    for name, value in expert_weights({"experts": step}, 1).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4)


def test_f1_is_scikit_learns():
    truth, said = [1, 1, 0, 0, 1], [1, 0, 1, 0, 1]
    assert f1(2, 1, 1) == pytest.approx(f1_score(truth, said))
    assert f1(0, 3, 0) == 0


@pytest.mark.parametrize("kind", ["bank", "process"])
def test_a_trial_that_diverges_is_recorded_and_the_others_go_on(data, kind):
    work = Round(1, (TrialBatch("0", (Trial(0, {"learning_rate": 1e30, "optimiser": "sgd"}), Trial(1, {})), 5, {}),))
    diverged, sound = backend(data, backend=kind).run(work)[0]
    assert diverged.state == "failed"
    assert "diverged: the validation loss is" in diverged.reason
    assert sound.state == "finished"
    assert len(sound.curve) == 3


def test_what_breaks_one_trial_costs_the_others_only_time(data, monkeypatch):
    """A trial of 9 filters runs out of memory, with whomever it is trained."""
    search = DfcpExpertSearch((EXPERT,) * CLASSES, ALONE)
    original = DfcpExpertSearch.start

    def start(self, trials, *rest):
        if any(trial.config.conv1 == 9 for trial in trials):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return original(self, trials, *rest)

    monkeypatch.setattr(DfcpExpertSearch, "start", start)
    found = ExpertBackend(search, data, TuneConfig(epochs=1), CPU)
    trials = tuple(Trial(number, {"conv1": filters}) for number, filters in enumerate((3, 9, 4)))
    outcomes = found.run(Round(1, (TrialBatch("0", trials, 5, {}),)))[0]
    assert [outcome.state for outcome in outcomes] == ["finished", "failed", "finished"]
    assert outcomes[1].reason == "out of memory: CUDA out of memory. Tried to allocate 20 GiB"


def test_a_rung_stops_within_the_study(data):
    trials = tuple(Trial(number, {"learning_rate": rate}) for number, rate in enumerate((1e-5, 0.01)))
    work = Round(1, (TrialBatch("0", trials, 5, {1: []}), TrialBatch("1", trials[:1], 5, {1: []})))
    first, second = backend(data, rungs=(1,), rung_factor=2).run(work)
    assert sorted(outcome.state for outcome in first) == ["finished", "stopped"]
    assert second[0].state == "finished"


def test_table_1_is_where_the_trend_leads():
    search = DfcpExpertSearch((EXPERT,), ALONE)
    assert search.suggestion(210) == {
        "conv1": 6, "conv2": 16, "fc1": 122, "fc2": 85, "learning_rate": 0.004, "optimiser": "sgd", "batch_size": 16,
    }  # fmt: skip
    assert search.suggestion(2200)["optimiser"] == "rmsprop"
    assert search.suggestion(1410)["fc1"] == 134
