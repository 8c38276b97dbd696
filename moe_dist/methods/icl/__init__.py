"""ICL: experts trained independently (DOL) and together (CoL) for long-tailed recognition."""
