"""methods/dfcp/alone.py: experts trained in banks beside each one trained by itself, on digits."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn import functional

from moe_dist.data.batch import DatasetInfo
from moe_dist.errors import UserError
from moe_dist.methods.dfcp.alone import banks_of, chosen_samples, expert_weights, train_experts_alone
from moe_dist.methods.dfcp.config import AloneConfig, DfcpConfig, ExpertConfig
from moe_dist.methods.dfcp.views import Views
from moe_dist.methods.phases import StepResult, Workspace
from moe_dist.models.experts import seeded_member
from moe_dist.models.lenet import LeNet
from moe_dist.optimisers import torch_optimiser
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.data import DataConfig
from tests.small_digits import SmallDigits

SEED, SIDE, CLASSES = 3, 16, 4
ALONE = AloneConfig(epochs=3, others_fraction=0.3, augment=AugmentConfig(shift=0.1, rotate=10), bank=3)
EXPERTS = (
    ExpertConfig(conv1=3, conv2=5, fc1=12, fc2=8, optimiser="adam", learning_rate=0.003, batch_size=16),
    ExpertConfig(conv1=4, conv2=4, fc1=9, fc2=8, optimiser="sgd", learning_rate=0.004, batch_size=16),
    ExpertConfig(conv1=2, conv2=6, fc1=10, fc2=5, optimiser="adam", learning_rate=0.002, batch_size=16),
    ExpertConfig(conv1=3, conv2=4, fc1=11, fc2=7, optimiser="rmsprop", learning_rate=0.001, batch_size=32),
)


@dataclass
class Here:
    """A task's context in this process, which remembers what was told of the progress."""

    device = torch.device("cpu")
    told: list[tuple[float, float]]

    def progress(self, done: float, total: float) -> None:
        self.told.append((done, total))


def workspace(digits: SmallDigits, told: list[tuple[float, float]]) -> Workspace:
    """As the steps before leave it: a third trusted, the rest in clusters that are the classes."""
    numbers = np.arange(len(digits))
    trusted, clustered = numbers[::3], np.setdiff1d(numbers, numbers[::3])
    results = {
        "split": StepResult({}, {"trusted": trusted, "clustered": clustered}),
        "pseudo_labels": StepResult({}, {"merged": digits.labels[clustered]}),
    }
    labels = np.where(np.isin(numbers, trusted), digits.labels, -1)
    return Workspace(
        info=info(digits),
        data=DataConfig(image_size=SIDE),
        seed=SEED,
        images=digits,
        labels=labels,
        groups=np.full(len(digits), -1),
        names=list,
        samples=numbers,
        true_labels=None,
        results=results,
        trained={}.__getitem__,
        run_tasks=lambda function, items, common=None: (function(common, item, Here(told)) for item in items),
    )


def info(digits: SmallDigits) -> DatasetInfo:
    return DatasetInfo(CLASSES, tuple("0123"), SIDE, len(digits))


def trained_alone(expert: int, digits: SmallDigits) -> dict[str, torch.Tensor]:
    """One expert under torch.optim, batch by batch."""
    config = EXPERTS[expert]
    network = seeded_member(lambda: LeNet(config.widths, 1, SIDE), expert, SEED)
    optimiser = torch_optimiser(network.parameters(), config.optimiser_config)
    random = np.random.default_rng([SEED, expert])
    rows = chosen_samples(digits.labels, expert, ALONE.others_fraction, random)
    views = Views(digits, DataConfig(image_size=SIDE), SEED)
    for epoch in range(ALONE.epochs):
        order = rows[random.permutation(len(rows))]
        for start in range(0, len(order), config.batch_size):
            batch = order[start : start + config.batch_size]
            logits = network(views.augmented(digits.uint8(batch), batch, epoch, ALONE.augment)).squeeze(1)
            targets = torch.from_numpy((digits.labels[batch] == expert).astype(np.float32))
            functional.binary_cross_entropy_with_logits(logits, targets).backward()
            optimiser.step()
            optimiser.zero_grad()
    return network.state_dict()


def test_experts_of_a_bank_are_as_if_each_had_been_trained_by_itself():
    digits, told = SmallDigits(CLASSES, 320), []
    config = DfcpConfig(experts=EXPERTS, alone=ALONE)
    result = train_experts_alone(config, info(digits)).run(workspace(digits, told))
    for expert in range(CLASSES):
        weights = expert_weights({"experts": result}, expert)
        for name, value in trained_alone(expert, digits).items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-4)
    assert result.values["banks"] == [[1, 3], [0, 2]]  # by cost 1, 0, 3, 2
    assert told == [(1, 3), (2, 3), (3, 3)] * 2


def test_an_expert_that_diverges_is_named():
    experts = (*EXPERTS[:2], EXPERTS[2].model_copy(update={"optimiser": "sgd", "learning_rate": 1e30}), EXPERTS[3])
    config = DfcpConfig(experts=experts, alone=ALONE)
    digits = SmallDigits(CLASSES, 320)
    with pytest.raises(UserError, match=r"expert 2 diverged by itself, at learning_rate 1e\+30; lower it"):
        train_experts_alone(config, info(digits)).run(workspace(digits, []))


def test_banks_are_few_and_of_like_work():
    """Five experts in banks of at most two make three banks; of costs 5, 4, 3, 2, 1 they are 5 + 2, 4 + 1 and 3."""
    assert banks_of([1.0, 5.0, 2.0, 4.0, 3.0], 2) == [[1, 2], [0, 3], [4]]
    assert banks_of([1.0, 1.0, 1.0], 8) == [[0, 1, 2]]
    assert banks_of([1.0, 1.0], 1) == [[0], [1]]
