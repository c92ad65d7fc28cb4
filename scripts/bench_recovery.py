"""Accuracy right after the cut: plain, compensated, recalibrated, and with both.

    python scripts/bench_recovery.py configs/digits.yaml --out runs/recovery-digits
    python scripts/bench_recovery.py configs/cifar10-vgg11.yaml data.root=CIFAR10 train.epochs=10 \
        --out runs/recovery-cifar

Trains with sparsity as the recipe says (or takes the trained network that is in --out already), cuts it at several
ratios, and prints test accuracy without any fine-tuning. Means and statistics come from training images. Seeds are the
recipe's: `seed=1` on the command line for another.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import bnprune
from bnprune.cli.render.progress import RichDisplay
from bnprune.cli.render.tables import show_rows
from bnprune.config.recipe import load_recipe
from bnprune.data import load_data
from bnprune.recovery.recover import recover
from bnprune.runs.directory import RunDirectory
from bnprune.runs.pipeline import execute
from bnprune.runs.preflight import choose_device, load_stage
from bnprune.training.evaluate import evaluate, validation_score

NAMES = ("plain", "compensated", "recalibrated", "both")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="run directory")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.8, 0.85, 0.9])
    args = parser.parse_intermixed_args()
    config = load_recipe(args.recipe, args.overrides)
    resumed = (args.out / "config.yaml").exists()
    directory = RunDirectory.resume(args.out, config) if resumed else RunDirectory.new(args.out, force=False)
    with RichDisplay() as display:
        execute(config, directory, display, lambda: False, ["train"])
    device, splits = choose_device(config.device), load_data(config.data)
    dense = load_stage(config, directory.checkpoint("train"))[0].to(device)
    start = evaluate(dense, splits.test, device).top1
    found: dict[str, dict[str, float]] = {}
    rows = []
    for ratio in args.ratios:
        result = bnprune.prune(dense, splits.example.to(device), ratio=ratio)
        score = validation_score(splits, device)
        tried = recover(
            dense, result.model, result.plan, splits, device, score=score, batch_size=config.data.batch_size
        )
        scores = {name: evaluate(tried.networks[name], splits.test, device).top1 for name in NAMES}
        found[f"{ratio:g}"] = {"macs": result.report.macs_after / result.report.macs_before, **scores}
        rows.append((f"{ratio:.0%}", f"{found[f'{ratio:g}']['macs']:.1%}", *(f"{scores[name]:.2%}" for name in NAMES)))
    show_rows(["channels removed", "MACs left", *NAMES], rows)
    print(f"sparse-trained: {start:.2%} test accuracy; {len(splits.test)} images, seed {config.seed}, "
          f"torch {torch.__version__}, {torch.get_num_threads()} threads")  # fmt: skip
    (args.out / "recovery.json").write_text(json.dumps({"sparse": start, "after": found}, indent=1))


if __name__ == "__main__":
    main()
