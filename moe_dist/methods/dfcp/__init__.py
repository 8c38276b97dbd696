"""DFCP-MoE: double-stage feature-level clustering and pseudo-labelling (Badjie, Cecilio, Casimiro)."""

from moe_dist.methods.dfcp.method import Dfcp

METHOD = Dfcp
