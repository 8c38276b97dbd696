"""The steps of DFCP-MoE up to labelled clusters. Each reads the earlier steps' results and returns its own.

Letters in shapes: N samples of the training set, L trusted ones, U unlabelled ones, which are clustered, Q clusters,
C classes, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from moe_dist.data.longtail import UNLABELLED
from moe_dist.errors import UserError
from moe_dist.methods.dfcp.clusters import Clustering, davies_bouldin, kmeans, purity, scan_radii
from moe_dist.methods.dfcp.config import SIAMESE, ClustersConfig, DfcpConfig, FeaturesConfig
from moe_dist.methods.dfcp.deep_clusters import FeatureClusterer
from moe_dist.methods.dfcp.pseudo_labels import (
    f1_threshold,
    held_out_pairs,
    merge_clusters,
    nearest_trusted,
    pseudo_labels,
    require_every_class,
)
from moe_dist.methods.dfcp.siamese_stages import siamese_phases
from moe_dist.methods.dfcp.trusted import split
from moe_dist.methods.dfcp.views import Views
from moe_dist.methods.phases import Phase, Step, StepResult, TaskContext, Workspace
from moe_dist.models.backbones import feature_map
from moe_dist.models.resized import resized
from moe_dist.models.siamese import embed
from moe_dist.settings.schema import settings_of


def labelling_phases(config: DfcpConfig, classes: int) -> Sequence[Phase]:
    """The phases from the split to pseudo-labelled, merged clusters; the Siamese network may give the features."""
    pseudo, features, clusters = config.pseudo_labels, config.features, config.clusters
    return (
        Step(
            "split",
            "split into trusted and unlabelled images",
            partial(split, config.trusted),
            {"trusted": settings_of(config.trusted)},
            sees_true_labels=True,
        ),
        *siamese_phases(pseudo, classes),
        Step("features", f"features by {features.backbone}", partial(_features, features), settings_of(features)),
        *_first_stage_phases(clusters, classes),
        Step(
            "second_stage",
            "second clustering stage: radius scan",
            partial(_second_stage, clusters),
            settings_of(clusters),
            sees_true_labels=True,
        ),
        Step("pseudo_labels", "pseudo-labels and merged clusters", _pseudo_labels, {}, sees_true_labels=True),
    )


def _first_stage_phases(config: ClustersConfig, classes: int) -> Sequence[Phase]:
    """K-means; or a deep clusterer's stages, and the step that has the clusters of what they trained."""
    if config.clusterer == "kmeans":
        run = partial(_first_stage, config)
        return (Step("first_stage", "first clustering stage: k-means", run, settings_of(config)),)
    clusterer = FeatureClusterer(config.clusterer, config.count or classes)
    title = f"first clustering stage: {config.clusterer.name}"
    return (
        *clusterer.phases(),
        Step("first_stage", title, partial(_deep_first_stage, clusterer, config.space), settings_of(config)),
    )


def members(results: Mapping[str, StepResult], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What training sees: the numbers and classes of trusted samples and of those in a labelled cluster; labels [N]."""
    parts = results["split"].arrays
    classes = labels.copy()
    classes[parts["clustered"]] = results["pseudo_labels"].arrays["merged"]
    samples = np.sort(np.concatenate([parts["trusted"], parts["clustered"]]))
    samples = samples[classes[samples] >= 0]
    return samples, classes[samples]


def _features(config: FeaturesConfig, workspace: Workspace) -> StepResult:
    """The vectors [U, D] that are clustered, of length 1 (reading: a radius needs a fixed scale)."""
    if config.backbone == SIAMESE:
        features = workspace.results["siamese"].arrays["clustered"]
    else:
        views = Views(workspace.images, workspace.data, workspace.seed)
        clustered = workspace.results["split"].arrays["clustered"]
        features = next(iter(workspace.run_tasks(_extract, [None], (views, config, clustered))))
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return StepResult({"dimensions": int(features.shape[1])}, {"features": features / np.maximum(norms, 1e-12)})


def _extract(task: tuple[Views, FeaturesConfig, np.ndarray], item: None, context: TaskContext) -> np.ndarray:
    """Flattened feature maps [U, D] (Eq 7-8)."""
    views, config, samples = task
    network = feature_map(config.backbone, config.weights).to(context.device)

    def batches() -> Any:
        for number, batch in enumerate(views.batches(samples)):
            context.progress(number * len(batch), len(samples))
            yield resized(batch, config.image_size)

    return embed(network, batches())


def _first_stage(config: ClustersConfig, workspace: Workspace) -> StepResult:
    """K-means: labels [U] and centroids [Q, D]; objective J and the Davies-Bouldin index (Eq 9)."""
    features = workspace.results["features"].arrays["features"]
    clustering = kmeans(features, config.count or workspace.info.classes, workspace.seed, config.restarts)
    values = {
        "clusters": len(clustering.centroids),
        "objective": clustering.objective,
        "davies_bouldin": davies_bouldin(features, clustering.labels),
    }
    return StepResult(values, {"labels": clustering.labels, "centroids": clustering.centroids})


def _deep_first_stage(clusterer: FeatureClusterer, space: str, workspace: Workspace) -> StepResult:
    """As _first_stage, by a deep clusterer; empty clusters are left out. codes [U, d], of length 1, where asked for.

    Centroids, objective and index are of the vectors of the second stage: features, or codes.
    """
    codes, clusters = clusterer.label_all(workspace)
    features = workspace.results["features"].arrays["features"]
    arrays = {}
    if space == "codes":
        arrays["codes"] = features = codes / np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-12)
    found, labels = np.unique(clusters, return_inverse=True)
    if len(found) < 2:
        raise UserError(
            f"clusters.clusterer = {clusterer.config.name}: all samples are in one cluster; pretrain it longer, or "
            "lower its learning rate"
        )
    centroids = np.stack([features[labels == number].mean(0) for number in range(len(found))])
    values = {
        "clusters": len(found),
        "objective": float(np.square(features - centroids[labels]).sum()),
        "davies_bouldin": davies_bouldin(features, labels),
    }
    return StepResult(values, {"labels": labels.astype(np.int64), "centroids": centroids} | arrays)


def _second_stage(config: ClustersConfig, workspace: Workspace) -> StepResult:
    """Labels [U] after stage 2 at the chosen radius; and the scan, with purities, which only the report reads."""
    assert workspace.true_labels is not None
    first = workspace.results["first_stage"]
    features = first.arrays["codes"] if config.space == "codes" else workspace.results["features"].arrays["features"]
    clustering = Clustering(first.arrays["labels"], first.arrays["centroids"], first.values["objective"])
    scan = scan_radii(features, clustering, config.radii, config.min_coverage, config.neighbours)
    true = workspace.true_labels[workspace.results["split"].arrays["clustered"]]
    rows = [
        {
            "radius": row.radius,
            "davies_bouldin": row.davies_bouldin if np.isfinite(row.davies_bouldin) else None,
            "coverage": row.coverage,
            "purity": _known_purity(row.labels, true),
        }
        for row in scan.rows
    ]
    labels = scan.chosen.labels if scan.chosen else clustering.labels
    values = {
        "scan": rows,
        "chosen": scan.chosen.radius if scan.chosen else None,
        "stage1_davies_bouldin": first.values["davies_bouldin"],
        "davies_bouldin": scan.chosen.davies_bouldin if scan.chosen else first.values["davies_bouldin"],
        "stage1_purity": _known_purity(clustering.labels, true),
    }
    return StepResult(values, {"labels": labels})


def _pseudo_labels(workspace: Workspace) -> StepResult:
    """Pseudo-labels [U] within tau* of a trusted image, and the class [U] of each sample's merged cluster.

    And what a review shows: the nearest trusted image's label [U], and its distance [U].
    """
    assert workspace.true_labels is not None
    parts, siamese = workspace.results["split"].arrays, workspace.results["siamese"].arrays
    trusted = parts["trusted"]
    labels = workspace.labels[trusted]
    threshold = f1_threshold(*held_out_pairs(siamese["threshold"], labels, parts["tracks"], siamese["held_out"]))
    nearest, distances = nearest_trusted(siamese["clustered"], siamese["trusted"], labels)
    pseudo = pseudo_labels(nearest, distances, threshold.tau)
    merged = merge_clusters(workspace.results["second_stage"].arrays["labels"], pseudo)
    require_every_class(merged, workspace.info.class_names)
    score = _scores(pseudo, merged, workspace.true_labels[parts["clustered"]], workspace.info.classes)
    values = {
        "threshold": threshold.tau,
        "f1": threshold.f1,
        "precision": threshold.precision,
        "recall": threshold.recall,
        **score.values,
    }
    looked_at = {"nearest": nearest, "distances": distances}
    return StepResult(values, {"pseudo": pseudo, "merged": merged, **looked_at, **score.arrays})


def _scores(pseudo: np.ndarray, merged: np.ndarray, true: np.ndarray, classes: int) -> StepResult:
    """The accuracy of the labels [U] by the true ones [U], which only the report reads; None where none is known."""
    kept = pseudo >= 0
    scored = kept & (true != UNLABELLED)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (true[scored], pseudo[scored]), 1)

    def accuracy(labels: np.ndarray) -> float | None:
        return float((labels[scored] == true[scored]).mean()) if scored.any() else None

    values = {
        "accuracy": accuracy(pseudo),
        "cluster_label_accuracy": accuracy(merged),
        "outliers": int((~kept).sum()),
        "purity": _known_purity(merged, true),
    }
    return StepResult(values, {"confusion": confusion, "cluster_sizes": np.bincount(merged[kept], minlength=classes)})


def _known_purity(clusters: np.ndarray, true: np.ndarray) -> float | None:
    """The purity of clusters [U] over the samples whose true labels [U] are known; None where none is."""
    known = true != UNLABELLED
    return purity(np.where(known, clusters, -1), true) if (clusters[known] >= 0).any() else None
