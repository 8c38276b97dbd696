"""`python -m moe_dist.cli`: the command."""

from moe_dist.cli import main

main()
