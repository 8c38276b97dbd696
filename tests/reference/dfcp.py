"""The equations of DFCP-MoE in NumPy float64, with loops, as the paper writes them: the judge of methods/dfcp.

Plain probabilities, no tricks; extreme inputs are the tests' to avoid. Letters: B samples, E experts, C classes.
"""

from __future__ import annotations

import math

import numpy as np


def softmax_gate(logits: np.ndarray) -> np.ndarray:
    """Eq 1: gate weights [B, E] of logits [B, E]."""
    weights = np.zeros_like(logits, dtype=np.float64)
    for i in range(logits.shape[0]):
        total = sum(math.exp(h) for h in logits[i])
        for j in range(logits.shape[1]):
            weights[i, j] = math.exp(logits[i, j]) / total
    return weights


def sparse_gate(weights: np.ndarray, top_k: int) -> np.ndarray:
    """The k largest weights of each row, divided by their sum; the rest 0."""
    sparse = np.zeros_like(weights)
    for i in range(weights.shape[0]):
        kept = sorted(range(weights.shape[1]), key=lambda j: -weights[i, j])[:top_k]
        for j in kept:
            sparse[i, j] = weights[i, j] / sum(weights[i, m] for m in kept)
    return sparse


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def binary_expert_distribution(logit: float, own: int, classes: int) -> np.ndarray:
    """The reading of P(Y | X, E_j): sigmoid(s_j) for the own class, the rest shared evenly."""
    p = sigmoid(logit)
    return np.array([p if c == own else (1 - p) / (classes - 1) for c in range(classes)])


def mixture(weights: np.ndarray, distributions: np.ndarray) -> np.ndarray:
    """Eq 3-4: P(Y | X) [B, C] from weights [B, E] and P(Y | X, E_j) [B, E, C]."""
    batch, experts, classes = distributions.shape
    result = np.zeros((batch, classes))
    for i in range(batch):
        for c in range(classes):
            for j in range(experts):
                result[i, c] += weights[i, j] * distributions[i, j, c]
    return result


def binary_mixture(gate: np.ndarray, expert_logits: np.ndarray, own: np.ndarray, classes: int) -> np.ndarray:
    """Eq 3 for binary experts: P(Y | X) [B, C] from gate *weights* [B, E] and expert logits [B, E]."""
    distributions = np.array(
        [[binary_expert_distribution(s, c, classes) for s, c in zip(row, own, strict=True)] for row in expert_logits]
    )
    return mixture(gate, distributions)


def softmax_mixture(gate: np.ndarray, expert_logits: np.ndarray) -> np.ndarray:
    """Eq 3 for softmax experts: P(Y | X) [B, C] from gate weights [B, E] and expert logits [B, E, C]."""
    return mixture(gate, np.array([softmax_gate(rows) for rows in expert_logits]))


def combined_loss(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Eq 15-16, one value per sample: -log P(Y_i | X_i)."""
    return np.array([-math.log(probs[i, labels[i]]) for i in range(len(labels))])


def expert_loss(expert_logits: np.ndarray, expert: np.ndarray) -> np.ndarray:
    """Eq 14 for binary experts, per sample: mean over experts of -log of the probability given to the truth."""
    losses = []
    for row, mine in zip(expert_logits, expert, strict=True):
        terms = [-math.log(sigmoid(s) if j == mine else 1 - sigmoid(s)) for j, s in enumerate(row)]
        losses.append(sum(terms) / len(terms))
    return np.array(losses)


def combined_loss_gradients(
    gate_logits: np.ndarray, expert_logits: np.ndarray, own: np.ndarray, classes: int, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Eq 17-20 worked out for L_com summed over samples: its gradient to gate logits and to expert logits, [B, E] each.

    With P = sum_j g_j q_j and q_j = P(Y_i | X_i, E_j): dL/dg_j = -q_j / P and dL/dq_j = -g_j / P (the chain that
    Eq 17 and 19 write down). Through the softmax, dg_j/dh_m = g_j (1[j=m] - g_m), which gives
    dL/dh_m = g_m - g_m q_m / P: gate minus posterior. Through the sigmoid, dp/ds = p (1 - p), and dq_j/dp is 1 for the
    own class, else -1 / (C - 1).
    """
    gate = softmax_gate(gate_logits)
    to_gate, to_experts = np.zeros_like(gate), np.zeros_like(gate)
    for i, label in enumerate(labels):
        q = [
            binary_expert_distribution(expert_logits[i, j], own[j], classes)[label]
            for j in range(expert_logits.shape[1])
        ]
        total = sum(g * value for g, value in zip(gate[i], q, strict=True))
        for j, value in enumerate(q):
            to_gate[i, j] = gate[i, j] - gate[i, j] * value / total
            p = sigmoid(expert_logits[i, j])
            slope = 1.0 if own[j] == label else -1.0 / (classes - 1)
            to_experts[i, j] = -gate[i, j] / total * slope * p * (1 - p)
    return to_gate, to_experts


def davies_bouldin(features: np.ndarray, labels: np.ndarray) -> float:
    """Eq 9, pair by pair."""
    clusters = sorted(set(labels.tolist()))
    centroids, spreads = [], []
    for cluster in clusters:
        members = [z for z, label in zip(features, labels, strict=True) if label == cluster]
        centroid = sum(members) / len(members)
        centroids.append(centroid)
        spreads.append(sum(math.dist(z, centroid) for z in members) / len(members))
    worst = []
    for u in range(len(clusters)):
        ratios = [
            (spreads[u] + spreads[v]) / math.dist(centroids[u], centroids[v]) for v in range(len(clusters)) if v != u
        ]
        worst.append(max(ratios))
    return sum(worst) / len(worst)


def contrastive_loss(distance: float, dissimilar: bool, margin: float) -> float:
    """Eq 11 in its standard form (h = 1: dissimilar)."""
    h = 1.0 if dissimilar else 0.0
    return (1 - h) * 0.5 * distance**2 + h * 0.5 * max(0.0, margin - distance) ** 2


def f1_scores(distances: np.ndarray, same: np.ndarray, tau: float) -> tuple[float, float, float]:
    """Eq 12: F1, precision and recall of calling pairs same up to the distance tau; a count of 0 gives 0."""
    pairs = list(zip(distances, same, strict=True))
    true_positives = sum(1 for d, s in pairs if d <= tau and s)
    false_positives = sum(1 for d, s in pairs if d <= tau and not s)
    false_negatives = sum(1 for d, s in pairs if d > tau and s)
    if true_positives == 0:
        return 0.0, 0.0, 0.0
    precision = true_positives / (true_positives + false_positives)
    recall = true_positives / (true_positives + false_negatives)
    return 2 * precision * recall / (precision + recall), precision, recall


def purity(clusters: np.ndarray, labels: np.ndarray) -> float:
    """(1/N) sum over clusters of the largest class count, samples with cluster -1 left out."""
    inside = [(c, y) for c, y in zip(clusters, labels, strict=True) if c >= 0]
    total = 0
    for cluster in {c for c, _ in inside}:
        members = [y for c, y in inside if c == cluster]
        total += max(members.count(y) for y in members)
    return total / len(inside)


def second_stage(features: np.ndarray, labels: np.ndarray, centroids: np.ndarray, radius: float) -> np.ndarray:
    """Stage 2: every cluster points to its 3 nearest, and those pointed to by 3 or more are references."""
    count = len(centroids)
    pointing: dict[int, set[int]] = {cluster: set() for cluster in range(count)}
    for cluster in range(count):
        others = [other for other in range(count) if other != cluster]
        others.sort(key=lambda other: math.dist(centroids[cluster], centroids[other]))
        for target in others[:3]:
            pointing[target].add(cluster)
    references = [cluster for cluster in range(count) if len(pointing[cluster]) >= 3] or list(range(count))
    result = []
    for feature, label in zip(features, labels, strict=True):
        within = [
            (math.dist(feature, centroids[reference]), reference)
            for reference in references
            if (label == reference or label in pointing[reference])
            and math.dist(feature, centroids[reference]) <= radius
        ]
        result.append(min(within)[1] if within else label)
    return np.array(result)


def portions(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Class-balanced: a level that every cluster fills or, if it is smaller, reaches with all it has, by bisection."""
    counts = {label: int((labels == label).sum()) for label in set(labels.tolist())}
    low, high = 0.0, float(max(counts.values()))
    for _ in range(200):
        level = (low + high) / 2
        if sum(min(level, size) for size in counts.values()) < fraction * len(labels):
            low = level
        else:
            high = level
    return np.array([min(1.0, low / counts[label]) for label in labels.tolist()])


def seen(labels: np.ndarray, gate_logits: np.ndarray, preferred: int, drawn: np.ndarray) -> np.ndarray:
    """Section 3 in the joint stage: sample i is seen by its cluster's expert, the preferred ones and the drawn ones."""
    result = np.zeros(gate_logits.shape, bool)
    for i, row in enumerate(gate_logits):
        by_weight = sorted(range(len(row)), key=lambda j: -row[j])
        for j in range(len(row)):
            result[i, j] = j == labels[i] or j in by_weight[:preferred] or bool(drawn[i, j])
    return result


def conditional_losses(
    gate_logits: np.ndarray,
    expert_logits: np.ndarray,
    seen: np.ndarray,
    own: np.ndarray,
    classes: int,
    labels: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eq 3, 16 and 14 over the experts that saw a sample, gate weights divided by their sum over these.

    Returns P(Y | X) [B, C], L_com [B] and L_e [B].
    """
    probs, combined, alone = np.zeros((len(labels), classes)), [], []
    for i, label in enumerate(labels):
        here = [j for j in range(len(own)) if seen[i, j]]
        total = sum(math.exp(gate_logits[i, j]) for j in here)
        for j in here:
            distribution = binary_expert_distribution(expert_logits[i, j], own[j], classes)
            probs[i] += math.exp(gate_logits[i, j]) / total * distribution
        combined.append(-math.log(probs[i, label]))
        truths = [sigmoid(expert_logits[i, j]) if own[j] == label else 1 - sigmoid(expert_logits[i, j]) for j in here]
        alone.append(sum(-math.log(truth) for truth in truths) / len(here))
    return probs, np.array(combined), np.array(alone)
