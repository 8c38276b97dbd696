"""Networks without a training method. `GMMMoE` is made to be put into networks of anyone's own."""

from moe_dist.models.gmm_moe import GMMMoE

__all__ = ["GMMMoE"]
