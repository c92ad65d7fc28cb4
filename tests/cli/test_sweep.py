"""`bnprune sweep`, `ratio: auto`, passes and recovery, on a small run with real data."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

import bnprune
from bnprune.config.schema import DataConfig, PruneConfig
from bnprune.data import load_data
from bnprune.errors import PruningError
from bnprune.recovery.recover import recover
from bnprune.runs.checkpoint import read_header
from bnprune.runs.passes import request_of
from bnprune.runs.results import Change, Pruned
from bnprune.training.evaluate import evaluate, validation_score
from tests.cli.harness import document, done, refusal, write

DIGITS = load_data(DataConfig(name="digits"))
CPU = torch.device("cpu")
RECIPE = """
seed: 0
model: {name: vgg11, kwargs: {num_classes: 10, in_channels: 1, width: 0.125}, gamma_init: 0.5}
data: {name: digits}
train: {epochs: 4, lr: 0.1}
prune: {ratio: 0.5}
finetune: {epochs: 1}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose sparse-trained network is cut in the tests."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "recipe.yaml").write_text(RECIPE)
    done("run", folder / "recipe.yaml", "--out", folder / "run")
    return folder / "run"


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_prune_says_what_became_of_the_accuracy(trained: Path, here: Path) -> None:
    found = document("prune", trained, "--ratio", "0.5", "--out", "slim.safetensors")
    dense, slim = (
        bnprune.load(path) for path in (trained / "checkpoints" / "finetune.safetensors", "slim.safetensors")
    )
    before, after = (evaluate(model, DIGITS.validation, CPU).value for model in (dense, slim))
    assert before != after
    assert found["effect"] == {"metric": "top1", "images": len(DIGITS.validation), "before": before, "after": after}
    text = done("prune", trained, "--ratio", "0.4", "--out", "other.safetensors").stdout
    assert f"validation accuracy on {len(DIGITS.validation)} images: {before:.2%} before" in text
    assert "to recover more: bnprune finetune other.safetensors --out DIR" in text
    unknown = document("prune", trained, "--stage", "train", "--ratio", "0.5", "--dry-run")
    assert "effect" not in unknown


def test_a_sweep_tries_and_recommends(trained: Path, here: Path) -> None:
    found = document("sweep", trained, "--at", "0.8,0.3", "--tolerance", "0.9")
    start, *points = found["points"]
    assert [point["asked"] for point in points] == [0.3, 0.8]
    assert start["macs"] == 1 > points[0]["macs"] > points[1]["macs"]
    dense = bnprune.load(trained / "checkpoints" / "train.safetensors")
    plain = bnprune.prune(dense, DIGITS.example, ratio=0.3).model
    assert points[0]["plain"] == evaluate(plain, DIGITS.validation, CPU).value
    assert points[0]["params"] == pytest.approx(count(plain) / count(dense))
    assert found["recommended"] == points[1]
    assert (found["images"], found["confidence"]) == (len(DIGITS.validation), 0.95)
    assert all(0 <= point["lower"] <= point["accuracy"] <= point["upper"] <= 1 for point in points)
    text = done("sweep", trained, "--at", "0.5", "--by", "macs", "--tolerance", "0.9", "--plot", here / "s.svg").stdout
    assert "recommended: macs 0.5" in text
    assert "● recovered" in text
    assert "<svg" in (here / "s.svg").read_text()
    share = float(text.split("macs 0.5 (recommended)")[1].split()[1].rstrip("%"))
    assert share <= 50


def test_a_sweep_ends_with_the_command_that_makes_the_cut(trained: Path, here: Path) -> None:
    source = trained / "checkpoints" / "train.safetensors"
    found = document("sweep", trained, "prune.cap=0.9", "prune.round_to=4", "--at", "0.3", "--tolerance", "0.9")
    text = done("sweep", trained, "prune.cap=0.9", "prune.round_to=4", "--at", "0.3", "--tolerance", "0.9").stdout
    command = text.strip().splitlines()[-1]
    assert command == f"bnprune prune {source} --ratio 0.3 --cap 0.9 --round-to 4 --out slim.safetensors"
    cut = document(*shlex.split(command)[1:-1], here / "slim.safetensors")
    before, after = (cut["params"][name] for name in ("before", "after"))
    assert after / before == pytest.approx(found["recommended"]["params"])
    assert found["constraints"] == {"cap": 0.9, "round_to": 4}


def test_the_command_names_a_network_of_ones_own_and_another_output(own: Path, here: Path) -> None:
    done("prune", "--model", "own:build", "--model-arg", "width=12", "--input", "1,16,16", "--out", "slim.safetensors")
    write("recipe.yaml", "model: {factory: own:build, kwargs: {width: 12}}\ndata: {name: digits}\n")
    text = done("sweep", "slim.safetensors", "--config", "recipe.yaml", "--at", "0.3", "--tolerance", "0.9").stdout
    command = text.strip().splitlines()[-1]
    given = "--model own:build --model-arg width=12 --input 1,16,16"
    assert command == f"bnprune prune slim.safetensors {given} --ratio 0.3 --out slimmer.safetensors"
    done(*shlex.split(command)[1:])


@pytest.mark.parametrize(("by", "value"), [("macs", "0.4"), ("ratio", "0.4")])
def test_a_sweep_ranks_by_the_default_of_what_it_varies(trained: Path, here: Path, by: str, value: str) -> None:
    """The recipe's target is a ratio; for MACs, the default criterion is another one."""
    asked = ("sweep", trained, "--by", by, "--at", value, "--tolerance", "0.9")
    found = document(*asked)
    command = done(*asked).stdout.strip().splitlines()[-1]
    assert f"--{by} {value} --out" in command
    cut = document(*shlex.split(command)[1:-1], here / "slim.safetensors")
    assert cut["params"]["after"] / cut["params"]["before"] == pytest.approx(found["recommended"]["params"])
    (plan,) = read_header(here / "slim.safetensors").plans
    assert plan.requested["criterion"] == {"macs": "activation", "ratio": "gamma"}[by]


def test_too_few_images_recommend_nothing_but_name_a_cut(trained: Path) -> None:
    """Of 143 images, one is 0.7%: that a loss is at most 1% cannot be shown, whatever is measured."""
    arguments = ("sweep", trained, "prune.recalibrate=0", "prune.compensate=false", "--at", "0.02")
    found = document(*arguments)
    assert found["recommended"] is None
    assert found["reason"].endswith(f"on {len(DIGITS.validation)} images: even for equal answers, 476 are needed.")
    assert found["measured"] == found["points"][1]
    text = done(*arguments).stdout
    assert "Nothing is recommended: a loss of at most 1.0% cannot be shown with 95% confidence" in text
    assert "ratio 0.02 (not certain)" in text
    assert "within the allowed loss on these images, but not for certain: ratio 0.02:" in text
    assert "--ratio 0.02 --out" in text.splitlines()[-1]


def test_a_sweep_starts_from_what_is_not_cut_yet(trained: Path) -> None:
    start = document("sweep", trained, "--at", "0.5")["points"][0]
    figures = json.loads((trained / "result.json").read_text())["stages"]["train"]
    assert start["accuracy"] == pytest.approx(figures["validation_accuracy"])


def test_bad_options_of_sweep(trained: Path) -> None:
    assert "--at: expected numbers" in refusal(2, "sweep", trained, "--at", "half")
    assert "--at: must be between 0 and 1" in refusal(2, "sweep", trained, "--at", "0.5,2")
    assert "must end in .png or .svg" in refusal(2, "sweep", trained, "--plot", "s.gif")
    assert "--tolerance" in refusal(2, "sweep", trained, "--tolerance", "2")


def test_recovery_keeps_what_does_best(trained: Path) -> None:
    splits = DIGITS
    dense = bnprune.load(trained / "checkpoints" / "train.safetensors")
    result = bnprune.prune(dense, splits.example, ratio=0.6)
    before = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
    next(dense.train().children()).eval()  # a part that is frozen
    modes = [module.training for module in (*dense.modules(), *result.model.modules())]
    found = recover(dense, result.model, result.plan, splits, CPU, score=validation_score(splits, CPU), batches=5)
    assert found.scores["plain"].value == evaluate(result.model, splits.validation, CPU).value
    assert [*found.scores] == [
        "plain", "compensated", "reconstructed",
        "recalibrated", "compensated + recalibrated", "reconstructed + recalibrated",
    ]  # fmt: skip
    assert found.scores[found.chosen].value == max(score.value for score in found.scores.values())
    assert evaluate(found.model, splits.validation, CPU).value == found.scores[found.chosen].value
    assert all(torch.equal(tensor, before[name]) for name, tensor in result.model.state_dict().items())
    assert modes == [module.training for module in (*dense.modules(), *result.model.modules())]
    bare = recover(
        dense,
        result.model,
        result.plan,
        splits,
        CPU,
        score=validation_score(splits, CPU),
        compensated=False,
        reconstruct_images=0,
        batches=0,
    )
    assert set(bare.scores) == {"plain"}


def test_ratio_auto(trained: Path, here: Path) -> None:
    options = ("prune.ratio=auto", "prune.tolerance=0.5", "train.epochs=2", "finetune.epochs=1")
    result = document("run", trained.parent / "recipe.yaml", *options, "--out", here / "auto")
    cut = result["stages"]["prune"]
    asked = [point["asked"] for point in cut["sweep"]]
    assert asked[0] == 0
    assert cut["target"]["requested"] in asked[1:]
    fits = [point["lower"] >= cut["sweep"][0]["accuracy"] - 0.5 for point in cut["sweep"]]
    assert cut["target"]["requested"] == asked[fits.index(False) - 1 if False in fits else -1]
    validation = cut["recovery"]["validation"]
    assert validation[cut["recovery"]["chosen"]] == max(validation.values()) == cut["validation_accuracy"]


def test_ratio_auto_with_too_few_images_to_be_sure(here: Path) -> None:
    """143 images cannot show that a loss is at most 0.2%; the ratio is that of the largest measured cut."""
    mlp = Path(__file__).parents[2] / "configs" / "digits-mlp.yaml"
    options = ("prune.ratio=auto", "prune.tolerance=0.002", "prune.recalibrate=0", "finetune.epochs=1")
    ended = done("run", mlp, *options, "--out", here / "auto")
    cut = json.loads((here / "auto" / "result.json").read_text())["stages"]["prune"]
    start, *points = cut["sweep"]
    assert cut["target"]["requested"] == max(
        point["asked"] for point in points if point["accuracy"] >= start["accuracy"] - 0.002
    )
    assert f"{cut['target']['requested']:g}, but a loss of at most 0.2% cannot be shown" in ended.stderr + ended.stdout


def test_passes_together_do_what_was_asked(trained: Path, here: Path) -> None:
    options = ("prune.ratio=null", "prune.macs=0.3", "prune.passes=2", "train.epochs=1")
    run = here / "passes"
    stages = document("run", trained.parent / "recipe.yaml", *options, "--out", run)["stages"]
    assert list(stages) == ["train", "prune", "finetune", "prune-2", "finetune-2"]
    assert 0.285 < stages["prune-2"]["macs"] / stages["train"]["macs"] <= 0.3
    assert 0.52 < stages["prune"]["macs"] / stages["train"]["macs"] <= 0.3**0.5
    assert (run / "plan-2.json").exists()
    loaded = bnprune.load(run / "checkpoints" / "finetune-2.safetensors")
    assert sum(parameter.numel() for parameter in loaded.parameters()) == stages["finetune-2"]["params"]
    for name in ("prune-2", "finetune-2"):
        (run / "checkpoints" / f"{name}.safetensors").unlink()
    result = json.loads((run / "result.json").read_text())
    for name in ("prune-2", "finetune-2"):
        del result["stages"][name]
    (run / "result.json").write_text(json.dumps(result))
    again = document("run", trained.parent / "recipe.yaml", *options, "--out", run, "--resume")["stages"]
    assert {k: v for k, v in again["finetune-2"].items() if k not in ("seconds", "latency_ms")} == {
        k: v for k, v in stages["finetune-2"].items() if k not in ("seconds", "latency_ms")
    }


def removed(before: int, after: int) -> Pruned:
    change = Change(before=before, after=after)
    return Pruned(channels=change, params=change, macs=change)


def test_targets_of_passes() -> None:
    config = PruneConfig(ratio=0.75, passes=2)
    assert request_of(config).ratio == pytest.approx(0.5)
    first = removed(100, 52)
    assert request_of(config, 2, first, first).ratio == pytest.approx(1 - 25 / 52)
    with pytest.raises(PruningError, match="nothing is left"):
        request_of(config, 2, first, removed(52, 20))
    with pytest.raises(ValueError, match="'passes' needs a ratio"):
        PruneConfig(latency_ms=5, passes=2)


def test_a_pass_with_nothing_left_to_do_is_skipped(trained: Path, here: Path) -> None:
    """The first pass did it all, because channels go in multiples."""
    options = ("prune.ratio=null", "prune.params=0.9", "prune.passes=4", "prune.round_to=32", "train.epochs=1")
    stages = document("run", trained.parent / "recipe.yaml", *options, "--out", here / "run")["stages"]
    assert stages["finetune-4"]["params"] <= 0.9 * stages["train"]["params"]
    skipped = [name for name in ("prune-2", "prune-3", "prune-4") if "skipped" in stages[name]]
    assert skipped
    result = json.loads((here / "run" / "result.json").read_text())
    for name in list(stages)[list(stages).index(skipped[-1]) :]:
        del result["stages"][name]
        (here / "run" / "checkpoints" / f"{name}.safetensors").unlink()
    (here / "run" / "result.json").write_text(json.dumps(result))
    again = document("run", trained.parent / "recipe.yaml", *options, "--out", here / "run", "--resume")["stages"]
    assert list(again) == list(stages)


def test_other_files_among_checkpoints_are_left_alone(trained: Path) -> None:
    other = trained / "checkpoints" / "train-backup.safetensors"
    other.write_bytes((trained / "checkpoints" / "train.safetensors").read_bytes())
    assert "accuracy" in document("evaluate", trained)
    other.unlink()


def test_a_sweep_of_nothing_says_why(trained: Path) -> None:
    message = refusal(3, "sweep", trained, "--at", "0.00001")
    assert "nothing is removed" in message
    found = document("sweep", trained, "prune.cap=0.5", "--at", "0.5,0.7,0.9", "--tolerance", "0.99")
    assert len(found["points"]) == 2
