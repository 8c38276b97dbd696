"""Everything that waits for a GPU, part by part, each within two minutes.

    python -m benchmarks.on_gpu                      # all parts
    python -m benchmarks.on_gpu steps tests          # some of them
    python -m benchmarks.on_gpu recipes --recipe "jobs/icl/cifar100_lt_100.yaml" --recipe "jobs/icl/cross_entropy.yaml"
    python -m benchmarks.on_gpu --dry-run            # all parts with tiny sizes on a CPU
    python -m benchmarks.on_gpu --list
    python -m benchmarks.on_gpu prepare --source cifar100.tar   # on a machine with a network: data and wheels

A part is a process of its own, so that none is hurt by another. When one ends, fails or is over its time, its result is
in OUT/results.json and a line of it in OUT/lines.txt and on the terminal, before the next one begins. docs/on_a_gpu.md
says how to bring it all to a machine without a network.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1]
sys.path.insert(0, str(BENCHMARKS))  # the other benchmarks are scripts that import each other by their names

import torch  # noqa: E402

from benchmarks.on_gpu.prepare import FOLDER, prepare  # noqa: E402
from benchmarks.on_gpu.running import Options, run_child, run_parts  # noqa: E402
from moe_dist.errors import UserError  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Run the parts that are named, or prepare the folder that they need. Returns the number of parts that failed."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["prepare"]:
        try:
            prepare(given[1:])
        except UserError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="default: all")
    parser.add_argument("--list", action="store_true", help="print the parts and end")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("runs/on_gpu"))
    parser.add_argument("--source", type=Path, default=FOLDER / "cifar100_lt100.tar.gz", help="images of the recipes")
    parser.add_argument("--seconds", type=float, default=120, help="the time of a part")
    parser.add_argument("--recipe", action="append", default=[], help='a job and its --set, as "JOB --set seed=1"')
    parser.add_argument("--mps", action="store_true", help="recipes: share the GPU by CUDA's MPS")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parsed = parser.parse_args(given)
    options = Options(
        parsed.out, "cpu" if parsed.dry_run else parsed.device, parsed.dry_run, parsed.source, parsed.seconds,
        tuple(parsed.recipe), parsed.mps,
    )  # fmt: skip
    if parsed.child:
        return run_child(parsed.child, options)
    from benchmarks.on_gpu.parts import PARTS

    if parsed.list:
        for name, part in PARTS.items():
            print(f"{name:<10} {part.about}")
        return 0
    if unknown := [name for name in parsed.parts if name not in PARTS]:
        parser.error(f"no part is called {unknown[0]}; choose of {', '.join(PARTS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --dry-run does all of it on a CPU")
    return run_parts(parsed.parts or list(PARTS), PARTS, options)


if __name__ == "__main__":
    sys.exit(main())
