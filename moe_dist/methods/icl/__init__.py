"""ICL: experts trained independently (DOL) and together (CoL) for long-tailed recognition."""

from moe_dist.methods.icl.method import Icl

METHOD = Icl
