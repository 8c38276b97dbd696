"""Losses for long-tailed recognition, as functions of tensors; each names its source.

Letters in shapes: B samples of a batch, C classes, E experts; n_c is the number of training images of class c. Logits
are [B, E, C], labels [B] int64.

    focal               Lin et al., Focal loss for dense object detection, ICCV 2017, Eq 4, of a softmax
    balanced_softmax    Ren et al., Balanced meta-softmax, NeurIPS 2020; with a factor tau before log n_c
                        Menon et al., Long-tail learning via logit adjustment, ICLR 2021, Eq 10
    margins, ldam       Cao et al., Learning imbalanced datasets with label-distribution-aware margin loss, NeurIPS 2019
    effective_weights   Cui et al., Class-balanced loss based on effective number of samples, CVPR 2019
    ride_*              Wang et al., Routing diverse distribution-aware experts, ICLR 2021, Eq 3 as its code computes it
    hard_negatives,     Jin et al., Self-heterogeneous integration with knowledge excavation (SHIKE), CVPR 2023:
    mutual_divergence   its dynamic knowledge transfer and mutual distillation
    target_biases       Aimar et al., Balanced product of calibrated experts, CVPR 2023
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of every expert: [B, E]."""
    return functional.cross_entropy(logits.transpose(1, 2), labels[:, None].expand(logits.shape[:2]), reduction="none")


def focal(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """(1 - p_y)^gamma * -log p_y of every expert: [B, E]; gamma 0 is the cross-entropy."""
    entropy = cross_entropies(logits, labels)
    # For gamma < 1, 0^gamma has an infinite gradient: a sample of probability 1 would make the whole gradient NaN.
    missing = (-torch.expm1(-entropy)).clamp_min(torch.finfo(entropy.dtype).tiny)
    return missing**gamma * entropy


def balanced_softmax(logits: Tensor, labels: Tensor, log_counts: Tensor) -> Tensor:
    """Cross-entropies of the adjusted logits z_c + log n_c: [B, E].

    log_counts: [C], or [E, C] where each expert has its own adjustment; multiplied by tau it is Menon's.
    """
    return cross_entropies(logits + log_counts, labels)


def margins(counts: Tensor, largest: float) -> Tensor:
    """LDAM's margins between cosines, proportional to n_c^(-1/4): [C]; that of the rarest class is `largest`."""
    raw = counts**-0.25
    return raw * (largest / raw.max())


def ldam(logits: Tensor, labels: Tensor, margins: Tensor) -> Tensor:
    """Cross-entropies with the label's logit reduced by its margin: [B, E].

    margins [C] in units of logits: the margins between cosines times the scale of the cosine classifiers.
    """
    own = functional.one_hot(labels, logits.shape[2]) * margins
    return cross_entropies(logits - own[:, None], labels)


def effective_weights(counts: Tensor, beta: float) -> Tensor:
    """Weights of classes by their effective number of samples, (1 - beta) / (1 - beta^n_c), with mean one: [C].

    With beta 0 all weights are equal; with beta near 1 they are proportional to 1 / n_c.
    """
    raw = (1 - beta) / (1 - beta ** counts.double())
    return (raw * (len(counts) / raw.sum())).to(counts.dtype)


def ride_temperatures(counts: Tensor, temperature: float, factor: float) -> Tensor:
    """RIDE's temperature of each class [C]: `temperature` for the largest class, less for rarer ones.

    It is proportional to C * (n_c / n) * factor + 1 - factor, factor in [0, 1).
    """
    raw = len(counts) * (counts / counts.sum()) * factor + 1 - factor
    return temperature * (raw / raw.max())


def ride_diversity(logits: Tensor, temperatures: Tensor) -> Tensor:
    """The experts' divergence from their mean: [B], mean(T)^2 * KL(mean || expert), summed over experts.

    Both sides are softmaxes of logits / T; the mean's is that of the experts' mean logits, without gradient.
    temperatures: T [C]. RIDE *subtracts* a multiple of it from the loss.
    """
    own = (logits / temperatures).log_softmax(2)
    mean = (logits.detach().mean(1, keepdim=True) / temperatures).log_softmax(2)
    divergence = (mean.exp() * (mean - own)).sum((1, 2))
    return temperatures.mean() ** 2 * divergence


def mutual_divergence(logits: Tensor) -> Tensor:
    """KL(p^m || p^m'), p = softmax, summed over ordered pairs of experts: [B]. Both sides have a gradient."""
    log_p = logits.log_softmax(2)
    ratios = log_p[:, :, None] - log_p[:, None]
    return (log_p.exp()[:, :, None] * ratios).sum((1, 2, 3))


def hard_negatives(logits: Tensor, labels: Tensor) -> Tensor:
    """SHIKE's dynamic transfer between non-target classes: [B], KL(teacher || expert), summed over experts.

    The hardest negative is the class other than the label with the largest mean logit. The teacher's logit is the mean
    over experts for the hardest negative, and the maximum over experts for all other classes, which makes the hardest
    negative less likely. Both sides are softmaxes over all classes but the label, as published (the released code
    leaves the label in the teacher, with a logit of 0); both have a gradient, as in the released code.
    """
    own = functional.one_hot(labels, logits.shape[2]).bool()
    mean = logits.mean(1)
    hardest = functional.one_hot(mean.masked_fill(own, float("-inf")).argmax(1), logits.shape[2]).bool()
    teacher = _log_softmax_without(torch.where(hardest, mean, logits.amax(1)), own)[:, None]
    student = _log_softmax_without(logits, own[:, None])
    return (teacher.exp() * (teacher - student)).sum((1, 2))


def _log_softmax_without(logits: Tensor, excluded: Tensor) -> Tensor:
    """log_softmax over the classes that are not `excluded`; excluded ones get a logit so low that their share is 0."""
    # Not -inf: 0 * (-inf - -inf) would make the divergence NaN.
    return logits.masked_fill(excluded, torch.finfo(logits.dtype).min / 4).log_softmax(-1)


def target_biases(counts: Tensor, spread: float, experts: int) -> Tensor:
    """BalPoE's biases [E, C], (1 - lambda_e) * log n_c: expert e is trained for class frequencies of n_c^lambda_e.

    The lambdas are evenly spaced from `spread` to -`spread`. Their mean is 0, so the mean of the experts' logits is
    trained for balanced classes. A single expert has lambda 0: balanced softmax.
    """
    # Made on the counts' device: a copy from the CPU could not be captured as a CUDA graph.
    kind, device = counts.dtype, counts.device
    lambdas = torch.zeros(1, dtype=kind, device=device)
    if experts > 1:
        lambdas = torch.linspace(spread, -spread, experts, dtype=kind, device=device)
    return (1 - lambdas)[:, None] * counts.log()
