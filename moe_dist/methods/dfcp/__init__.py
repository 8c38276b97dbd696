"""DFCP-MoE: double-stage feature-level clustering and pseudo-labelling (Badjie, Cecilio, Casimiro)."""
