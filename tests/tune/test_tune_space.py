"""tune/space.py, halving.py and budget.py: checked spaces, hand-worked rungs and gains; and what a job may say."""

from __future__ import annotations

import pytest
from formula_studies import Network
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from moe_dist.errors import UserError
from moe_dist.job import Job, parse_job
from moe_dist.methods.dfcp.config import DfcpConfig
from moe_dist.tune.budget import expected_gain
from moe_dist.tune.halving import Rungs, rung_keys
from moe_dist.tune.space import configured, distributions, nearest, read_space
from moe_dist.tune.trials import Outcome, Point, Round, Trial, TrialBatch


def job(**tune) -> Job:
    return parse_job({"name": "t", "kind": "tune", "method": {"name": "dfcp"}, "tune": tune}, "t.yaml")


def test_a_range_is_of_the_kind_its_parameter_is():
    space = read_space(
        {"width": {"low": 2, "high": 9}, "rate": {"low": 1, "high": 10, "log": True}, "kind": ["a", "b"]}
    )
    found = distributions(space, Network(), "tune.space")
    assert found == {
        "width": IntDistribution(2, 9),
        "rate": FloatDistribution(1.0, 10.0, log=True),
        "kind": CategoricalDistribution(("a", "b")),
    }


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"depth": [1, 2]}, "tune.space.depth: there is no such parameter; choose among kind, rate, width"),
        (
            {"width": {"low": 0, "high": 9}},
            "tune.space.width: width: input should be greater than or equal to 1, got 0",
        ),
        ({"width": {"low": 1.5, "high": 9}}, "tune.space.width: width: input should be a valid integer"),
        ({"rate": [0.1, -1]}, "tune.space.rate: rate: input should be greater than 0, got -1"),
        ({"kind": {"low": 1, "high": 2}}, "tune.space.kind: kind: input should be a valid string"),
    ],
)
def test_what_a_configuration_refuses_is_refused_in_its_space(space, sentence):
    with pytest.raises(UserError) as refused:
        distributions(read_space(space), Network(), "tune.space")
    assert sentence in str(refused.value)


def test_nested_parameters_go_by_their_path():
    config = configured(DfcpConfig(), {"gate.optimiser.learning_rate": 0.5, "joint.batch_size": 7})
    assert config.gate.optimiser.learning_rate == 0.5
    assert config.joint.batch_size == 7
    assert config.gate.optimiser.weight_decay == DfcpConfig().gate.optimiser.weight_decay


def test_starting_points_are_brought_into_the_space():
    assert nearest(IntDistribution(4, 20), 25.2) == 20
    assert nearest(FloatDistribution(0.1, 0.2), 0.01) == 0.1
    assert nearest(CategoricalDistribution((16, 32, 64)), 50) == 64
    assert nearest(CategoricalDistribution(("sgd", "adam")), "rmsprop") == "sgd"
    assert nearest(FloatDistribution(0.1, 5.0), None) == 0.1  # as clip_norm, which is off by default


@pytest.mark.parametrize(
    ("tune", "sentence"),
    [
        ({"space": {}}, "space is empty; name a parameter and its values"),
        ({"trials": 0}, "tune.trials: input should be greater than or equal to 1, got 0"),
        ({"seconds": 0}, "tune.seconds: input should be greater than 0, got 0"),
        ({"trials": None}, "no budget; give trials, seconds or both"),
        ({"rungs": [3, 1]}, "rungs = [3, 1] are not in ascending order"),
        ({"space": {"conv1": {"low": 9, "high": 3}}}, "tune.space.conv1: low = 9 is not below high = 3"),
        ({"space": {"conv1": {"low": 0, "high": 3, "log": True}}}, "log needs low above 0, not 0"),
        ({"space": {"conv1": {"low": 1, "high": float("inf")}}}, "must be numbers that are not infinite"),
        ({"space": {"conv1": [None, 3]}}, "tune.space.conv1: a choice is a number, a word, true or false, not None"),
        ({"experts": []}, "experts is empty; name the experts to search, or leave experts out for all"),
        ({"trails": 3}, "tune.trails: unknown field"),
        ({"space": {"conv1": 3}}, "give {low: ..., high: ...}, or a list of values to choose from"),
        ({"of": []}, "name what is searched: experts, method or both"),
    ],
)
def test_a_job_that_cannot_be_searched_is_refused_with_a_sentence(tune, sentence):
    with pytest.raises(UserError) as refused:
        job(**tune)
    assert sentence in str(refused.value)


def test_only_a_search_has_a_section_tune():
    with pytest.raises(UserError, match="a job of kind `tune` has a section `tune`, and no other kind has one"):
        parse_job({"name": "t", "kind": "train", "method": {"name": "dfcp"}, "tune": {}}, "t.yaml")
    with pytest.raises(UserError, match="a job of kind `tune` has a section `tune`"):
        parse_job({"name": "t", "kind": "tune", "method": {"name": "dfcp"}}, "t.yaml")


def test_a_rung_lets_the_best_third_of_all_so_far_go_on():
    """Of 3 + 3 trials with scores .1 .5 .9 and then .6 .7 .2, the best two are .9 and .7; earlier ones count."""
    rungs = Rungs(3, {2: []})
    assert rungs.survivors(1, {0: (0.0, 0.0), 1: (0.1, 0.0)}) == {0, 1}
    assert rungs.survivors(2, {0: (0.1, 0.0), 1: (0.5, 0.0), 2: (0.9, 0.0)}) == {2}
    assert rungs.survivors(2, {3: (0.6, 0.0), 4: (0.7, 0.0), 5: (0.2, 0.0)}) == {4}
    assert rungs.survivors(2, {6: (0.8, -0.1), 7: (0.8, -0.2), 8: (0.0, 0.0)}) == {6, 7}  # three of nine: .9 .8 .8


def test_equal_scores_are_told_apart_by_the_loss():
    assert Rungs(2, {1: []}).survivors(1, {0: (1.0, -0.3), 1: (1.0, -0.1)}) == {1}


def test_rungs_remember_what_curves_say():
    outcomes = [
        Outcome("finished", (Point(1, 0.2, 0.9), Point(2, 0.4, 0.8))),
        Outcome("stopped", (Point(1, 0.1, 0.7),)),
        Outcome("failed", reason="diverged"),
    ]
    assert rung_keys(outcomes, (1, 2)) == {1: [(0.2, -0.9), (0.1, -0.7)], 2: [(0.4, -0.8)]}


def test_expected_gain_by_hand():
    """Scores .2 .4 .6: median .4, best .6; three more are better with probability 3 / 6: half of .2."""
    assert expected_gain([0.2, 0.4, 0.6], 3) == pytest.approx(0.1)
    assert expected_gain([0.0, 0.5, 0.9], 3) == pytest.approx(0.05)  # only .1 is left to 1
    assert expected_gain([1.0, 1.0], 8) == 0.0


def test_a_round_travels_as_json():
    batch = TrialBatch("3", (Trial(0, {"width": 4, "rate": 0.1, "kind": "sgd"}),), 7, {2: [(0.5, -0.25)]})
    work = Round(9, (batch, TrialBatch("4", (), 8)))
    assert Round.from_json(work.to_json()) == work
