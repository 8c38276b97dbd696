"""The networks: an autoencoder, and the clustering network that begins with its weights.

Letters: B samples of a batch, N samples of the training set, I numbers of an input, D of a code, Q clusters,
k neighbours, K channels and S side of an image.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from moe_dist.methods.edcwrn.neighbours import nearest_known

SMALLEST_DEVIATION = 1e-8
"""Of an input over all samples; one that is the same in all of them stays 0."""


def layers(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them, none after the last."""
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class AutoEncoder(nn.Module):
    """Inputs [B, I] -> codes [B, D] -> inputs. Its buffers shift and scale [I] say how samples become inputs."""

    shift: Tensor
    scale: Tensor

    def __init__(self, inputs: int, hidden: Sequence[int], code: int, colour: bool) -> None:
        super().__init__()
        widths = (inputs, *hidden, code)
        self.colour = colour
        self.encoder = layers(widths)
        self.decoder = layers(widths[::-1])
        self.register_buffer("shift", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))

    def inputs(self, samples: Tensor) -> Tensor:
        """The inputs [B, I] of images [B, 3, S, S], whose channels are averaged unless it sees colour, or vectors."""
        if samples.dim() == 4 and not self.colour:
            samples = samples.mean(1)
        return (samples.flatten(1) - self.shift) * self.scale

    @torch.no_grad()
    def scale_inputs(self, scaling: Literal["standard", "power"], inputs: np.ndarray) -> None:
        """Set shift and scale from all samples' inputs [N, I], which are not scaled yet; see AutoEncoderConfig."""
        if scaling == "power":
            self.scale.fill_(1 / max(float(np.sqrt(np.square(inputs, dtype=np.float64).mean())), SMALLEST_DEVIATION))
            return
        deviation = inputs.std(0, dtype=np.float64)
        scale = np.where(deviation > SMALLEST_DEVIATION, 1 / np.maximum(deviation, SMALLEST_DEVIATION), 0)
        self.shift.copy_(torch.from_numpy(inputs.mean(0, dtype=np.float64)))
        self.scale.copy_(torch.from_numpy(scale))


class ClusteringNetwork(nn.Module):
    """A sample's encoder, its neighbours' encoder (None where codes are of the sample alone), a decoder and centres.

    Both encoders start as `pretrained`'s. Where a code is a sum of two, the decoder's first layer starts as half of the
    pretrained one: a sample that is its own neighbour is then decoded as before.
    centres [Q, D] are learnt; weights [Q, D] are Eq 15's; known_codes, known_beside [N, D]: the training samples' codes
    and what the neighbours' encoder gives for them, as the last update of the target left them.
    """

    weights: Tensor
    known_codes: Tensor
    known_beside: Tensor

    def __init__(self, pretrained: AutoEncoder, clusters: int, samples: int, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.autoencoder = pretrained
        self.neighbour_encoder = copy.deepcopy(pretrained.encoder) if neighbours else None
        first, last = pretrained.decoder[0], pretrained.encoder[-1]
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        if neighbours:
            with torch.no_grad():
                first.weight.mul_(0.5)
        code = last.out_features
        self.centres = nn.Parameter(torch.zeros(clusters, code))
        self.register_buffer("weights", torch.full((clusters, code), 1 / code))
        for name in ("known_codes", "known_beside"):
            self.register_buffer(name, torch.zeros(samples if neighbours else 0, code))

    @torch.no_grad()
    def scale_codes(self, factor: float) -> None:
        """Make codes and centres `factor` times as long; what is decoded stays the same."""
        encoders = [self.autoencoder.encoder] + ([self.neighbour_encoder] if self.neighbour_encoder is not None else [])
        for encoder in encoders:
            for parameter in encoder[-1].parameters():
                parameter.mul_(factor)
        first = self.autoencoder.decoder[0]
        assert isinstance(first, nn.Linear)
        first.weight.div_(factor)
        self.centres.mul_(factor)

    def inputs(self, samples: Tensor) -> Tensor:
        """The inputs [B, I] of images or vectors."""
        return self.autoencoder.inputs(samples)

    def own_codes(self, inputs: Tensor) -> Tensor:
        """v_x [B, D], Eq 7."""
        return self.autoencoder.encoder(inputs)

    def beside(self, inputs: Tensor) -> Tensor:
        """The neighbours' encoder's outputs [B, D], whose largest over a sample's neighbours is v_z (Eq 8)."""
        assert self.neighbour_encoder is not None
        return self.neighbour_encoder(inputs)

    def encoded(self, inputs: Tensor) -> dict[str, Tensor]:
        """What both encoders give, [B, D]: own, and where codes have neighbours beside."""
        own = {"own": self.own_codes(inputs)}
        return own | {"beside": self.beside(inputs)} if self.neighbours else own

    def codes_of_new(self, inputs: Tensor) -> Tensor:
        """The codes f [B, D] of samples by themselves, Eq 9 with neighbours among the training samples.

        A sample is its own neighbour while these are looked for, as in the training's very first pass.
        """
        own = self.own_codes(inputs)
        if not self.neighbours:
            return own
        rows = nearest_known(own + self.beside(inputs), self.known_codes, self.neighbours)
        return own + self.known_beside[rows].amax(1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        """Eq 10: inputs [B, I] from codes [B, D]."""
        return self.autoencoder.decoder(codes)


class TrialNetwork(ClusteringNetwork):
    """A clustering network without neighbours, as IDEC's, that begins at one of several optima of k-means.

    optima [S, Q, D]: their centres, in the pretrained codes' own length; NaN where k-means has found fewer. within
    []: the share of its codes' variance within clusters at the last update of the target, infinite where one is empty.
    """

    optima: Tensor
    within: Tensor

    def __init__(self, pretrained: AutoEncoder, clusters: int, samples: int, starts: int) -> None:
        super().__init__(pretrained, clusters, samples, neighbours=0)
        self.register_buffer("optima", torch.full((starts, *self.centres.shape), torch.nan))
        self.register_buffer("within", torch.tensor(torch.inf))
