"""The arena (`scripts/arena.py`): a tiny one from end to end, its comparisons, and its README."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "configs" / "arena"
sys.path.insert(0, str(ROOT / "scripts"))

from arena import results, schedule  # noqa: E402
from arena.arms import ARMS, BASES  # noqa: E402
from arena.cells import DEFAULT_ARMS, MAIN_SEEDS, NETWORKS, SHARES, Cell, ordered  # noqa: E402
from arena.comparison import difference  # noqa: E402
from arena.images import prepare_images  # noqa: E402
from arena.plot import plot  # noqa: E402
from arena.table import replaced, table  # noqa: E402

TINY = ("train.epochs=1", "train.warmup_epochs=0", "finetune.epochs=1", "data.batch_size=32", "model.kwargs.width=0.1")
LONG = ("train.epochs=60", "train.warmup_epochs=0", "finetune.epochs=1", "data.batch_size=32", "model.kwargs.width=0.1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder of 32x32 pixels: digits of three classes."""
    from sklearn.datasets import load_digits

    folder, found = tmp_path_factory.mktemp("digits"), load_digits()
    for split, first, last in (("train", 0, 100), ("test", 100, 120)):
        for label in range(3):
            (folder / split / str(label)).mkdir(parents=True)
            for index in np.flatnonzero(found.target == label)[first:last]:
                image = Image.fromarray((found.images[index] * 15).astype("uint8")).resize((32, 32)).convert("RGB")
                image.save(folder / split / str(label) / f"{index}.jpg")
    return folder


def command(data: Path, work: Path, *more: str, arms: Sequence[str] = ("default", "uniform")) -> list[str]:
    step = [sys.executable, str(ROOT / "scripts" / "arena.py"), "run"]
    kept = ["--data", str(data), "--work", str(work), "--results", str(work / "results"), "--networks", "vgg11"]
    return [*step, *more, *kept, "--seeds", "0", "--arms", *arms]


ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(data: Path, work: Path, *more: str, **arms: Sequence[str]) -> str:
    done = subprocess.run(
        command(data, work, *more, **arms), env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def document(work: Path, cell: Cell) -> dict[str, Any]:
    found = results.read(work / "results", cell)
    assert found is not None, f"{cell.name} has no result"
    return found


@pytest.fixture(scope="module")
def killed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run whose processes were killed in the training of the base; the folder, and the time at which it began."""
    work = tmp_path_factory.mktemp("work")
    process = subprocess.Popen(
        command(data, work, *LONG), env=ENVIRONMENT, start_new_session=True, stdout=subprocess.DEVNULL
    )
    metrics = work / "runs" / "vgg11-seed0-sparse" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 3 <= len(metrics.read_text().splitlines()) < 60
    assert not list((work / "results").glob("*.json"))
    return work, metrics.with_name("env.json").stat().st_mtime_ns


@pytest.fixture(scope="module")
def finished(data: Path, killed: tuple[Path, int]) -> Path:
    work, _ = killed
    printed = run(data, work, *LONG)
    assert "0 failed, 0 left" in printed
    return work


def test_a_killed_run_continues_with_its_last_epoch(finished: Path, killed: tuple[Path, int]) -> None:
    folder = finished / "runs" / "vgg11-seed0-sparse"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [line["epoch"] for line in lines if "epoch" in line]
    assert epochs == list(range(1, 61))
    assert (folder / "env.json").stat().st_mtime_ns == killed[1], "the training began anew"


def test_every_cell_has_its_figures(finished: Path) -> None:
    base = document(finished, Cell("vgg11", 0, "sparse"))
    assert {"validation", "test"} == base["accuracy"]["trained"].keys()
    for share in SHARES:
        for arm in ("default", "uniform"):
            found = document(finished, Cell("vgg11", 0, arm, share))
            expected = {"cut", "recalibrated", "finetuned"} | ({"recovered"} if arm == "default" else set())
            assert found["accuracy"].keys() == expected
            assert all(0 <= value <= 1 for scores in found["accuracy"].values() for value in scores.values())
            assert 0.6 * share < found["macs"]["share"] <= share
            assert found["macs"]["before"] == base["macs"]["after"]
            assert found["params"]["after"] < found["params"]["before"]
            assert found["seconds"]["prune"] > 0
            environment = found["environment"]
            assert {"commit", "dirty", "versions", "processor", "date", "command"} <= environment.keys()
            assert str(finished) not in json.dumps(found), "a document names a folder of this machine"


def test_finished_cells_are_skipped(data: Path, finished: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in (finished / "results").glob("*.json")}
    assert "5 cells, 5 finished" in run(data, finished, *LONG)
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_cells_of_another_recipe_are_refused(data: Path, finished: Path) -> None:
    done = subprocess.run(command(data, finished, *TINY), env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "was made by another recipe" in done.stderr


def test_the_arm_distillation_learns_from_the_network_before_pruning(data: Path, finished: Path) -> None:
    run(data, finished, *LONG, arms=["default", "distillation"])
    losses = []
    for arm in ("default", "distillation"):
        metrics = finished / "runs" / f"vgg11-seed0-{arm}-0.5" / "finetune-1" / "metrics.jsonl"
        entries = [json.loads(line) for line in metrics.read_text().splitlines()]
        losses.append([entry["train"]["loss"] for entry in entries if "train" in entry])
    assert losses[0]
    assert losses[0] != losses[1]


def test_validation_only_opens_no_test_image(data: Path, tmp_path: Path) -> None:
    source = tmp_path / "data"
    (source / "test").mkdir(parents=True)
    (source / "train").symlink_to(data / "train")
    for label in range(3):
        (source / "test" / str(label)).mkdir()
        (source / "test" / str(label) / "0.jpg").write_text("not an image")
    run(source, tmp_path / "work", *TINY, "--validation-only", arms=["uniform"])
    found = document(tmp_path / "work", Cell("vgg11", 0, "uniform", 0.5))
    assert found["accuracy"]["finetuned"]["test"] is None
    assert found["accuracy"]["finetuned"]["validation"] is not None


# -- parts -------------------------------------------------------------------------------------------------------------


def test_images_are_means_of_four_pixels(data: Path, tmp_path: Path) -> None:
    images = prepare_images(data, tmp_path, validation_only=False)
    small = next((images / "train" / "0").iterdir())
    large = data / "train" / "0" / f"{small.stem}.jpg"
    with Image.open(small) as made, Image.open(large) as source:
        assert made.size == (16, 16)
        expected = np.asarray(source.convert("RGB"), float).reshape(16, 2, 16, 2, 3).mean((1, 3))
        assert np.abs(np.asarray(made, float) - expected).max() <= 1
    before = small.stat().st_mtime_ns
    assert prepare_images(data, tmp_path, validation_only=False) == images
    assert small.stat().st_mtime_ns == before


def test_cells_come_after_those_that_they_need_and_main_arms_first() -> None:
    cells = ordered(NETWORKS, MAIN_SEEDS, DEFAULT_ARMS)
    assert len(cells) == len(set(cells))
    for number, cell in enumerate(cells):
        assert set(cell.needs) <= set(cells[:number])
    main = {name for name, arm in ARMS.items() if arm.main}
    assert {cell.arm for cell in cells if cell.seed} == main | {"sparse", "dense"}
    first_other = next(number for number, cell in enumerate(cells) if cell.arm not in main | set(BASES))
    assert first_other == sum(cell.arm in main or cell.seed > 0 or cell.arm in {"sparse", "dense"} for cell in cells)


def test_a_cell_that_does_not_fit_into_the_budget_is_not_started(tmp_path: Path) -> None:
    said: list[str] = []
    arena = schedule.Arena(tmp_path, tmp_path, tmp_path / "results", TINY, False, "")
    base = Cell("vgg11", 0, "sparse")
    recipe = arena.recipe(base)
    results.write(arena.results, base, recipe, "", {"seconds": {"training": 100.0}})
    cell = Cell("vgg11", 0, "default", 0.5)
    assert schedule.estimate(cell, arena) == pytest.approx(50.0)  # half of the MACs, one epoch
    left = schedule.Schedule(arena, [cell], 1, time.monotonic() + 40, said.append)
    assert left.run()
    assert left.cells == [cell]
    assert not left.workers
    assert "more than is left of the budget" in said[0]


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("6h", 21600), ("3d", 259200), ("1.5h", 5400)])
def test_budgets(text: str, seconds: float) -> None:
    assert schedule.seconds_of(text) == seconds


def test_torch_pruning_meets_the_macs_and_leaves_the_network_as_it_was() -> None:
    pytest.importorskip("torch_pruning", reason="needs the extra 'bench'")
    from arena import peers

    from bnprune.models.zoo import ModelSpec, build
    from bnprune.pruning.cost import cost

    cases = (("resnet20", {}, "bn"), ("vgg11", {"width": 0.25}, "bn-none"), ("vgg11", {"width": 0.25}, "l1"))
    for name, kwargs, importance in cases:
        torch.manual_seed(0)
        network = build(ModelSpec(name, kwargs=kwargs))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight)
        example = torch.zeros(1, 3, 16, 16)
        total = cost(network, example).macs
        found = peers.cut(network, example, 0.5, importance, name)
        assert 0.47 * total < cost(found.network, example).macs <= 0.5 * total
        assert found.network(torch.randn(2, 3, 16, 16)).shape == (2, 10)
        assert cost(network, example).macs == total


# -- the table ---------------------------------------------------------------------------------------------------------


def made(arm: str, seed: int, test: float, macs: float | None = 0.5) -> dict[str, Any]:
    environment = {"commit": "c0ffee", "dirty": False, "date": "2026-01-01T00:00Z", "processor": "P", "cores": 2}
    return {
        "cell": {"network": "vgg11", "seed": seed, "arm": arm, "macs": macs},
        "accuracy": {"finetuned": {"test": test, "validation": test}},
        "macs": {"share": 0.5},
        "environment": {**environment, "versions": {"torch": "2"}, "command": "python scripts/arena.py run"},
    }


def test_differences_are_paired_over_the_seeds() -> None:
    default = [made("default", seed, accuracy) for seed, accuracy in ((0, 0.80), (1, 0.70), (2, 0.90))]
    arm = [made("tp-bn", seed, accuracy) for seed, accuracy in ((2, 0.88), (0, 0.79), (1, 0.69))]
    found = difference(arm, default, "accuracy", "finetuned", "test")
    assert found is not None
    assert found.mean == pytest.approx(-0.04 / 3)
    deviation = math.sqrt(((0.01 - 0.04 / 3) ** 2 * 2 + (0.02 - 0.04 / 3) ** 2) / 2)
    assert found.margin == pytest.approx(4.303 * deviation / math.sqrt(3))
    assert found.verdict == ""  # the margin is larger than the difference
    level = difference([made("tp-bn", seed, 0.5) for seed in (0, 1)], [made("default", seed, 0.6) for seed in (0, 1)],
                       "accuracy", "finetuned", "test")  # fmt: skip
    assert level is not None
    assert level.verdict == "behind"
    assert difference(arm[:1], default[:1], "accuracy", "finetuned", "test") is None  # no seed in common


def test_the_table_shows_every_arm_and_what_is_significant() -> None:
    documents = [made("default", seed, 0.80 + seed / 100) for seed in MAIN_SEEDS]
    documents += [made("tp-bn", seed, 0.78 + seed / 100) for seed in MAIN_SEEDS]
    text = table(documents)
    half = text[text.index("50% of the MACs") : text.index("30% of the MACs")]
    row = next(line for line in half.splitlines() if line.startswith("| tp-bn |"))
    assert "79.00 ± 1.00" in row
    assert "-2.00 ± 0.00 | behind" in row
    assert "Significantly behind the default: tp-bn." in half
    assert all(f"| {arm} |" in half for arm in ARMS)
    assert half.count("not run") == len(ARMS) - 2


def test_the_readme_and_the_plots_are_what_the_results_give() -> None:
    documents = results.read_all(FOLDER / "results")  # refuses a file of another kind
    assert len(documents) == len(list((FOLDER / "results").glob("*.json")))
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert replaced(readme, table(documents)) == readme, "run `python scripts/arena.py table`"
    for network in NETWORKS:
        picture, path = plot(documents, network), FOLDER / f"{network}.svg"
        assert path.exists() == (picture is not None)
        assert picture is None or path.read_text(encoding="utf-8") == picture


def test_the_plot_has_a_point_per_seed() -> None:
    documents = [made("default", seed, 0.80 + seed / 100) for seed in MAIN_SEEDS]
    picture = plot(documents, "vgg11")
    assert picture is not None
    assert picture.count('fill-opacity="0.6"') == 3
    assert plot(documents, "resnet20") is None
