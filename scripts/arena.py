"""Compare bnprune with other ways to slim networks: the same data, the same MACs, the same fine-tuning.

    python scripts/arena.py run --data CIFAR10 --work DIR [--budget 6h] [--workers 2] [key=value ...]
    python scripts/arena.py latency --work DIR
    python scripts/arena.py table

`run` trains, per network and seed, one network with the penalty and one without, cuts them in several ways (the arms)
to the same shares of their MACs, and fine-tunes all in the same way. --data is an ImageFolder; its images are resized
to 16x16 pixels first. Each network, seed, arm and share is a cell with a JSON file of its own in --results. Cells that
have one are skipped, and interrupted ones continue with their last epoch. Within --budget, no cell is started that
would not fit. With --validation-only, for choosing defaults, the test images are not opened, and results go to another
folder. `key=value` pairs change the recipes in configs/arena/.

`latency` measures the networks that `run` has left in --work, on a machine that should do nothing else, and adds the
figures to the results. `table` writes the table and the plots of configs/arena/README.md from the results.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from arena import results
from arena.arms import ARMS, BASES
from arena.cells import DEFAULT_ARMS, MAIN_SEEDS, NETWORKS, ordered
from arena.execution import RECIPES, Arena
from arena.images import prepare_images
from arena.latency import measure_cells
from arena.plot import plot
from arena.schedule import Schedule, seconds_of, unfinished
from arena.table import BEGIN, END, replaced
from arena.table import table as table_of

from bnprune.runs.files import write_text


def main() -> None:
    args = parsed(sys.argv[1:])
    raise SystemExit({"run": run, "latency": latency, "table": table}[args.step](args))


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["run", "latency", "table"])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="train/CLASS/* and test/CLASS/*")
    parser.add_argument("--work", type=Path, metavar="DIR", help="for images and networks")
    parser.add_argument("--results", type=Path, metavar="DIR", help="for JSON files [default: configs/arena/results]")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(MAIN_SEEDS))
    parser.add_argument("--arms", nargs="+", default=list(DEFAULT_ARMS), choices=[*BASES, *ARMS])
    parser.add_argument("--budget", default="36500d", metavar="TIME", help="such as 90m, 6h or 3d [default: no limit]")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes, one cell each")
    parser.add_argument("--validation-only", action="store_true")
    args = parser.parse_intermixed_args(arguments)
    if args.results is None:
        args.results = RECIPES / ("results-validation" if args.validation_only else "results")
    for option in {"run": ("data", "work"), "latency": ("work",)}.get(args.step, ()):
        if getattr(args, option) is None:
            parser.error(f"{args.step}: --{option} is needed")
    return args


def run(args: argparse.Namespace) -> int:
    """Carry out the cells that are not finished; return the exit status."""
    deadline = time.monotonic() + seconds_of(args.budget)
    images = prepare_images(args.data, args.work, validation_only=args.validation_only)
    command = results.command_of(sys.argv[1:])
    arena = Arena(images.resolve(), args.work, args.results, tuple(args.overrides), args.validation_only, command)
    cells = ordered(args.networks, args.seeds, args.arms)
    left = unfinished(cells, arena)
    print(f"{len(cells)} cells, {len(cells) - len(left)} finished", flush=True)
    return 0 if Schedule(arena, left, args.workers, deadline, say).run() else 1


def latency(args: argparse.Namespace) -> int:
    """Measure the networks that have no latency yet."""
    done, missing = measure_cells(args.work, args.results, results.command_of(sys.argv[1:]))
    print(f"{done} measured; of {missing}, the networks are not in {args.work}")
    return 0


def table(args: argparse.Namespace) -> int:
    """Write the table and the plots beside the results."""
    documents, folder = results.read_all(args.results), args.results.parent
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else f"{BEGIN}{END}\n"
    write_text(readme, replaced(text, table_of(documents)))
    for network in NETWORKS:
        picture = plot(documents, network)
        if picture is not None:
            write_text(folder / f"{network}.svg", picture)
    print(f"{len(documents)} cells: {readme}")
    return 0


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
