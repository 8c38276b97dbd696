"""moe_dist: train, tune and reproduce image mixtures of experts on a Ray cluster, or on one laptop."""

__version__ = "0.1.0"
