"""A trained model in one process: a torch module with its classes, its preprocessing and its predictions.

Letters: N samples that are predicted, B of a batch, C classes (or clusters), E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moe_dist.errors import UserError
from moe_dist.methods.base import Method, Prediction
from moe_dist.use.preprocess import Preprocessing, all_samples, listed

BATCH = 256
"""Samples that are computed at once, as in a run's own evaluation."""


@dataclass(frozen=True)
class Predictions:
    """What a model says of N samples.

    log_probs [N, C] float32; classes: the C names. gates: the experts' weights [N, E] float32 by the gate's name, ""
    for the only one; none where the model has no experts.
    """

    log_probs: Tensor
    classes: tuple[str, ...]
    gates: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.log_probs)

    @property
    def labels(self) -> Tensor:
        """The number [N] of each sample's most likely class."""
        return self.log_probs.argmax(1)

    @property
    def names(self) -> list[str]:
        """The name of each sample's most likely class."""
        return [self.classes[label] for label in self.labels.tolist()]

    @property
    def probabilities(self) -> Tensor:
        """The probability [N] of each sample's most likely class."""
        return self.log_probs.amax(1).exp()

    def best(self, count: int = 5) -> list[list[tuple[str, float]]]:
        """Of each sample the `count` most likely classes with their probabilities, the likeliest first."""
        found = self.log_probs.topk(min(count, self.log_probs.shape[1]), dim=1)
        rows = zip(found.indices.tolist(), found.values.exp().tolist())
        return [[(self.classes[label], share) for label, share in zip(labels, shares)] for labels, shares in rows]


class TrainedModel(nn.Module):
    """A trained network in eval mode; called with preprocessed samples, it gives log-probabilities [B, C].

    classes: names, by number; clusters are called "cluster 0" and so on. predicts: classes, or clusters. method: what
    computes predictions from the network. about: where it comes from, as JSON values. temperature: what logits are
    divided by; 1 unless the model is calibrated.
    """

    def __init__(
        self, method: Method, network: nn.Module, preprocessing: Preprocessing, about: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.method = method
        self.network = method.packed(network)
        self.preprocessing = preprocessing
        self.about = dict(about)
        self.temperature: float = self.about.get("temperature", 1.0)
        self.predicts = method.predicts
        self.eval()
        probed = self._probe()
        self.gate_sizes = {name: gate.shape[1] for name, gate in probed.gates.items()}
        """The number of experts of each gate, by the gate's name."""
        self.classes = tuple(method.info.class_names)
        if method.predicts == "clusters":
            self.classes = tuple(f"cluster {number}" for number in range(probed.log_probs.shape[1]))

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    def forward(self, samples: Tensor) -> Tensor:
        """Log-probabilities [B, C] of samples as `preprocess` gives them, [B, 3, S, S] or [B, D]."""
        return self.tempered(self.method.predict(self.network, samples).log_probs)

    def tempered(self, log_probs: Tensor) -> Tensor:
        """Log-probabilities [B, C] at the model's temperature; as they are where it is 1."""
        return log_probs if self.temperature == 1 else (log_probs / self.temperature).log_softmax(1)

    def calibrate(self) -> TrainedModel:
        """Let the model give probabilities at the temperature that the run fitted on validation.

        Raises UserError where it fitted none.
        """
        fitted = self.about.get("calibration")
        if fitted is None:
            where, again = self.about["run"], "run its job again with --resume, which evaluates anew and trains nothing"
            if self.predicts == "clusters":
                raise UserError(f"calibrated: the run {where} found clusters, for which there is no temperature")
            raise UserError(f"calibrated: the run {where} fitted no temperature; where it validates, {again}")
        self.temperature = self.about["temperature"] = fitted["temperature"]
        return self

    def preprocess(self, images: Any) -> Tensor:
        """Images as the network sees them, [B, 3, S, S] float32 on its device, decoded and squared as in training.

        images: one or several of: paths, bytes of image files, PIL images, pixels [H, W] or [H, W, 3] uint8; where the
        model takes vectors, an array [B, D]. Raises UserError, which names an image that cannot be used.
        """
        samples = all_samples(self.preprocessing, listed(images))
        return self.preprocessing.normalised(samples.to(self.device))

    def predict(self, images: Any, top_k: int | None = None, batch: int = BATCH) -> Predictions:
        """The predictions for images as `preprocess` takes them, `batch` of them at once.

        top_k: only by the k experts of the largest gate weights. Raises UserError, which names an image that cannot be
        used, and where the model cannot leave out experts.
        """
        given = listed(images)
        if not len(given):
            raise ValueError("no images were given")
        size = min(batch, len(given))
        parts: list[Predictions] = []
        first = all_samples(self.preprocessing, given[:size])
        for start in range(0, len(given), size):
            samples = all_samples(self.preprocessing, given[start : start + size], start) if start else first
            parts.append(self.predict_samples(samples, first, top_k))
        gates = {name: torch.cat([part.gates[name] for part in parts]) for name in parts[0].gates}
        return Predictions(torch.cat([part.log_probs for part in parts]), self.classes, gates)

    @torch.inference_mode()
    def predict_samples(self, samples: Tensor, full: Tensor, top_k: int | None = None) -> Predictions:
        """The predictions for squares [n, 3, S, S] uint8 or vectors [n, D], computed in a batch as large as `full`.

        full: samples of which a batch too small is filled up. A network's last bits depend on how many samples are
        computed at once, and a run's own evaluation fills up its last batch in the same way.
        """
        self.require_top_k(top_k)
        count, missing = len(samples), len(full) - len(samples)
        if missing > 0:
            samples = torch.cat([samples, full[:missing]])
        shown = self.preprocessing.normalised(samples.to(self.device))
        prediction = self.method.predict(self.network, shown, top_k)
        # Of a single image and top-k, a gate has only the weights of the experts that were computed, without names.
        whole = {name: gate for name, gate in prediction.gates.items() if gate.shape[1] == self.gate_sizes[name]}
        gates = {name: gate[:count].float().cpu() for name, gate in whole.items()}
        log_probs = self.tempered(prediction.log_probs[:count].float())
        return Predictions(log_probs.cpu(), self.classes, gates)

    @torch.inference_mode()
    def _probe(self) -> Prediction:
        """A prediction for two empty samples, whose sizes are those of every prediction."""
        samples = self.preprocessing.normalised(self.preprocessing.empty(2).to(self.device))
        return self.method.predict(self.network, samples)

    def require_top_k(self, top_k: int | None) -> None:
        """Raise UserError where the model cannot predict by `top_k` of its experts."""
        if top_k is None:
            return
        name = self.method.config.name
        if self.temperature != 1:
            raise UserError(f"top_k = {top_k}: the temperature is that of all experts; leave one of both out")
        if not self.method.heeds_top_k or not self.gate_sizes:
            raise UserError(f"top_k = {top_k}: {name} cannot leave out experts; predict without it")
        if not 1 <= top_k <= min(self.gate_sizes.values()):
            raise UserError(f"top_k = {top_k}: {name} has {min(self.gate_sizes.values())} experts; give 1 to that many")
