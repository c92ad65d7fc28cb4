"""Every verb with valid input, on networks that train in a second."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import bnprune as api
from bnprune.models import ModelSpec
from bnprune.reporting.number_format import count
from bnprune.runs.checkpoint import read_header
from tests.cli.harness import CHAIN, RECIPE, contents, document, done, read_json, refusal, squeezed, tensor_bytes, write
from tests.nets import chain

# -- prune ------------------------------------------------------------------------------------------------------------


def test_prune_a_network_of_ones_own(own: Path, here: Path) -> None:
    result = done("prune", "--model", "own:build", "--model-arg", "width=12", "--input", "1,8,8", "--ratio", "0.75")
    assert "wrote slim.safetensors" in result.stdout
    assert "ratio: requested 0.75, removed 0.750" in result.stdout
    assert "verified: the slim network equals the masked original" in result.stdout
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(here / "slim.safetensors").items()}
    assert shapes["0.weight"] == (3, 1, 3, 3)
    assert shapes["1.running_var"] == (3,)
    assert shapes["5.weight"] == (10, 3)


def test_what_prune_writes_loads_in_python(here: Path) -> None:
    done("prune", *CHAIN, "--out", "deep/er/slim.safetensors")
    model = api.load(here / "deep/er/slim.safetensors", model=chain())
    assert sum(norm.num_features for norm in model.modules() if isinstance(norm, torch.nn.BatchNorm2d)) == 18
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 5)


def test_prune_a_zoo_network_needs_nothing_to_load(here: Path) -> None:
    done("prune", "--model", "mlp", "--model-arg", "image_size=8", "--model-arg", "hidden=[16]", "--input", "1,8,8")
    assert api.load(here / "slim.safetensors")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_prune_a_checkpoint_again(trained: Path, here: Path) -> None:
    done("prune", trained, "--out", "half.safetensors")
    done("prune", "half.safetensors", "--out", "quarter.safetensors")
    assert load_file(here / "quarter.safetensors")["layers.1.weight"].shape == (8, 256)
    assert len(read_header(here / "quarter.safetensors").plans) == 2
    found = document("inspect", "quarter.safetensors")
    assert found["channels"]["total"] == 8
    assert document("evaluate", "quarter.safetensors")["test"]["count"] == 359


def test_prune_a_run_takes_its_last_network(run: Path, here: Path) -> None:
    done("prune", run, "--ratio", "0.25")
    assert load_file(here / "slim.safetensors")["layers.1.weight"].shape == (12, 256)


def test_a_plan_from_a_dry_run_is_replayed(trained: Path, here: Path) -> None:
    done("prune", trained, "--ratio", "0.4", "--out", "direct.safetensors")
    write("plan.json", json.dumps(document("prune", trained, "--ratio", "0.4", "--dry-run")["plan"]))
    found = document("prune", trained, "--plan", "plan.json", "--out", "replayed.safetensors")
    assert found["ratio"]["requested"] == 0.4
    assert found["verification"]["passed"] is True
    assert tensor_bytes(here / "replayed.safetensors") == tensor_bytes(here / "direct.safetensors")


def test_the_plan_of_a_run_is_replayed(trained: Path, run: Path, here: Path) -> None:
    """The same cut; what the run did to weights and statistics afterwards, with its data, is not in the plan."""
    done("prune", trained, "--plan", run / "plan.json", "--no-compensate")
    got, expected = (tensor_bytes(path) for path in (here / "slim.safetensors", run / "checkpoints/prune.safetensors"))
    assert got.keys() == expected.keys()
    assert {len(value) for value in got.values()} == {len(value) for value in expected.values()}
    gammas = [name.replace("running_mean", "weight") for name in got if name.endswith("running_mean")]
    assert gammas
    assert all(got[name] == expected[name] for name in gammas)


def test_a_dry_run_of_a_plan_writes_nothing(trained: Path, run: Path) -> None:
    text = done("prune", trained, "--plan", run / "plan.json", "--dry-run").stdout
    assert "dry run: nothing was written" in text
    assert contents() == {}


def test_a_dry_run_shows_every_layer(own: Path) -> None:
    text = done("prune", "--model", "own:build", "--input", "1,8,8", "--dry-run").stdout
    assert [line.split()[:4] for line in text.splitlines()[1:3]] == [
        ["0", "conv", "8", "4"],
        ["5", "linear", "10", "10"],
    ]
    assert "dry run: nothing was written" in text


def test_a_floor_and_an_excluded_layer_are_respected() -> None:
    chosen = ("--ratio", "0.5", "--min-channels", "6", "--exclude", "1")
    found = document("prune", *CHAIN, *chosen)
    widths = {layer["name"]: layer["after"] for layer in found["layers"]}
    assert widths["1.1"] == 12
    assert min(widths["0.1"], widths["3.1"]) >= 6
    assert found["channels"] == {"before": 24, "after": 12}


# -- inspect, evaluate ------------------------------------------------------------------------------------------------


def test_inspect_explains_what_must_stay(own: Path) -> None:
    text = done("inspect", "--model", "own:build", "--input", "1x8x8", "--exclude", "0").stdout
    assert "0 of 8 BN channels are prunable" in text
    assert "is excluded by '0'" in text


def test_evaluate_a_run_directory(finished: tuple[Path, dict[str, Any]]) -> None:
    path, result = finished
    text = done("evaluate", path).stdout
    assert f"{result['stages']['finetune']['accuracy']:.2%}" in text
    assert "359" in text


def test_evaluate_weights_from_elsewhere(trained: Path, recipe: Path, finished: tuple[Path, dict[str, Any]]) -> None:
    mlp = ("--model", "mlp", "--model-arg", "image_size=16", "--model-arg", "hidden=[32]")
    found = document("evaluate", *mlp, "--weights", trained, "--config", recipe)
    assert found["accuracy"] == finished[1]["stages"]["train"]["accuracy"]


# -- train, finetune, run ---------------------------------------------------------------------------------------------


def test_finetune_needs_a_checkpoint_of_a_run_and_nothing_else(run: Path, here: Path) -> None:
    source = run / "checkpoints" / "prune.safetensors"
    found = document("finetune", source, "finetune.epochs=2", "finetune.lr=0.02", "--out", "tuned")
    figures = found["stages"]["finetune"]
    assert figures["epochs"] == 2
    assert figures["channels"] == 16
    assert figures["accuracy"] > 0.5
    assert "lr: 0.02" in (here / "tuned" / "config.yaml").read_text()
    assert len(read_header(here / "tuned/checkpoints/finetune.safetensors").plans) == 1
    assert tensor_bytes(here / "tuned/checkpoints/finetune.safetensors") != tensor_bytes(source)


def test_finetune_with_a_recipe_of_its_own(recipe: Path, here: Path) -> None:
    mlp = ("--model", "mlp", "--model-arg", "image_size=16", "--model-arg", "hidden=[32]", "--input", "1,16,16")
    done("prune", *mlp)
    assert "no recipe is stored" in refusal(5, "finetune", "slim.safetensors", "--out", "tuned")
    found = document("finetune", "slim.safetensors", recipe, "finetune.epochs=1", "--out", "tuned")
    assert found["stages"]["finetune"]["channels"] == 16


def own_checkpoint(width: int, *, named: bool) -> Path:
    """A pruned network of one's own, from the command line or (where nobody has named its factory) from Python."""
    path = Path("slim.safetensors")
    line = ("--model", "own:build", "--model-arg", f"width={width}", "--input", "1,16,16")
    done("prune", *line, "--out", path, "--force")
    if not named:
        network = api.load(path, model=api.build(ModelSpec(factory="own:build", kwargs={"width": width})))
        api.save(api.prune(network, torch.zeros(1, 1, 16, 16), ratio=0.3), path)
    return path


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("named", [True, False])
def test_finetune_a_network_of_ones_own_with_a_recipe_of_another(recipe: Path, here: Path, named: bool) -> None:
    slim = own_checkpoint(12, named=named)
    line = ("--model", "own:build", "--model-arg", "width=12", "data.limit=200", "--out", "tuned")
    figures = document("finetune", slim, recipe, *line)["stages"]["finetune"]
    assert figures["latency_ms"] > 0
    tuned = here / "tuned/checkpoints/finetune.safetensors"
    model = {"factory": "own:build", "kwargs": {"width": 12}}
    assert yaml.safe_load((here / "tuned/config.yaml").read_text())["model"] == model | {"pretrained": False}
    assert read_header(tuned).config["model"] == read_header(tuned).spec.to_dict() == model
    assert "Nothing to do" in done("finetune", slim, recipe, *line, "--resume").stderr


@pytest.mark.usefixtures("own")
def test_finetune_takes_factory_and_arguments_from_the_recipe(recipe: Path) -> None:
    slim = own_checkpoint(12, named=False)
    keys = ["model:", "{factory: own:build, kwargs: {width: 12}}"]
    text = "\n".join(" ".join(keys) if line.startswith("model:") else line for line in RECIPE.splitlines())
    found = document("finetune", slim, write("own.yaml", text), "data.limit=200", "--out", "tuned")
    assert found["stages"]["finetune"]["latency_ms"] > 0


@pytest.mark.usefixtures("own")
def test_finetune_records_the_network_of_the_checkpoint(recipe: Path, here: Path) -> None:
    done(
        "prune", "--model", "vgg11", "--model-arg", "width=0.125", "--model-arg", "in_channels=1", "--input", "1,32,32"
    )
    text = RECIPE.replace("augment: false", "augment: false, image_size: 32")
    done("finetune", "slim.safetensors", write("mlp.yaml", text), "data.limit=200", "--out", "tuned")
    tuned = here / "tuned/checkpoints/finetune.safetensors"
    assert read_header(tuned).spec.name == "vgg11"
    assert read_header(tuned).config["model"]["name"] == "vgg11"
    assert yaml.safe_load((here / "tuned/config.yaml").read_text())["model"]["name"] == "vgg11"


def test_a_run_writes_all_its_files(run: Path) -> None:
    files = set(contents(run))
    assert {"config.yaml", "env.json", "metrics.jsonl", "plan.json", "result.json"} <= files
    assert {f"checkpoints/{n}.safetensors" for n in ("last", "best", "train", "prune", "finetune")} <= files
    assert not [name for name in files if name.endswith(".tmp")]
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in epochs if "epoch" in line] == [
        ("train", 1),
        ("train", 2),
        ("finetune", 1),
    ]


def test_the_resolved_recipe_of_a_run_repeats_it(run: Path, here: Path) -> None:
    done("run", run / "config.yaml", "--out", "again")
    for name in ("train", "prune", "finetune"):
        again = tensor_bytes(here / "again" / "checkpoints" / f"{name}.safetensors")
        assert again == tensor_bytes(run / "checkpoints" / f"{name}.safetensors")


def test_resume_of_a_finished_run_does_nothing(run: Path, recipe: Path) -> None:
    before = contents(run)
    result = done("run", recipe, "--out", run, "--resume")
    assert f"Nothing to do: every stage of '{run}' is finished." in result.stderr
    assert contents(run) == before


def test_resume_with_another_configuration_shows_the_difference(run: Path, recipe: Path) -> None:
    before = contents(run)
    message = refusal(2, "run", recipe, "--out", run, "--resume", "train.lr=0.01")
    assert f"--resume: the configuration has changed since '{run}' was started:" in message
    assert "- lr: 0.02 + lr: 0.01" in message
    assert contents(run) == before


def test_run_goes_on_where_train_ended(recipe: Path, run: Path, here: Path) -> None:
    done("train", recipe, "--out", "run")
    found = document("run", recipe, "--out", "run", "--resume")
    assert list(found["stages"]) == ["train", "prune", "finetune"]
    assert tensor_bytes(here / "run/checkpoints/finetune.safetensors") == tensor_bytes(
        run / "checkpoints" / "finetune.safetensors"
    )


def test_a_run_of_a_network_of_ones_own(own: Path, here: Path) -> None:
    text = RECIPE.replace("{name: mlp, kwargs: {in_channels: 1, image_size: 16, hidden: [32]}}", "{factory: own:build}")
    recipe = write("own.yaml", text)
    done("run", recipe, "train.epochs=1", "data.limit=200", "--out", "run")
    assert "--model own:build" in refusal(5, "evaluate", "run")
    assert document("evaluate", "run", "--model", "own:build")["test"]["count"] == 40
    done("finetune", "run", recipe, "data.limit=200", "--out", "tuned")


BRANCHING = """\
import torch
from torch import nn


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        if x.mean().item() > 100:
            x = x / 2
        return self.head(self.layers(x).mean((2, 3)))
"""


def test_a_run_of_a_network_that_branches_on_its_data(here: Path) -> None:
    write("branching.py", BRANCHING)
    model = "{name: mlp, kwargs: {in_channels: 1, image_size: 16, hidden: [32]}}"
    recipe = write("own.yaml", RECIPE.replace(model, "{factory: branching:Branching}"))
    done("validate", recipe)
    found = document("run", recipe, "train.epochs=1", "data.limit=200", "--out", "run")
    assert found["stages"]["finetune"]["channels"] == 4


def test_progress_goes_to_stderr_and_the_table_to_stdout(recipe: Path) -> None:
    result = done("train", recipe, "--out", "run")
    assert "epoch 2/2" in result.stderr
    assert "sparse-trained" in result.stdout
    assert "All files are in run" in result.stdout
    assert "epoch" not in result.stdout


def test_a_training_too_short_for_sparsity_gets_advice_that_helps(recipe: Path) -> None:
    reached = done("train", recipe, "--out", "reached")
    assert "λ is steered to bring 50% of all γ to zero" in reached.stderr
    assert "50% of γ ≈ 0  apart from the others" in reached.stderr
    result = done("train", recipe, "--out", "run", "train.lr=0.002")
    assert "few channels will become removable. Train longer (train.epochs)" in result.stderr


def test_a_training_too_short_for_its_target_is_announced_by_validate_and_run(recipe: Path) -> None:
    done("init", "digits.yaml")
    announced = "bring 70% of all γ to zero within 17 optimizer steps"
    for epochs, expected in ((2, True), (30, False)):
        found = document("validate", "digits.yaml", f"train.epochs={epochs}")["warnings"]
        assert [announced in text for text in found] == [True] * expected
    assert "within 9 optimizer steps" in squeezed(done("train", recipe, "--out", "run").stderr)
    assert "optimizer steps" not in done("train", recipe, "train.epochs=20", "--out", "long").stderr


@pytest.mark.parametrize(
    ("override", "expected_message"),
    [
        ("lambda=1e-4", "Raise train.sparsity.lambda above 0.0"),
        ("travel=0.5", "Raise train.sparsity.travel above 1 (got 0.5)."),
    ],
)
def test_a_penalty_too_weak_for_sparsity_gets_advice_that_helps(
    override: str, expected_message: str, recipe: Path
) -> None:
    long = ("train.epochs=40", "data.limit=100", "data.batch_size=8", "train.lr=0.1")
    assert expected_message in done("train", recipe, *long, f"train.sparsity.{override}", "--out", "run").stderr


def test_fine_tuning_a_checkpoint_shows_the_networks_before_it(recipe: Path) -> None:
    done("run", recipe, "--out", "run")
    dense, pruned = (api.load(f"run/checkpoints/{stage}.safetensors") for stage in ("train", "prune"))
    shown = done("finetune", "run/checkpoints/prune.safetensors", "--out", "tuned").stdout
    stages = read_json(Path("run/result.json").read_text())["stages"]
    for name, network in (("dense", dense), ("pruned", pruned)):
        (row,) = [line for line in shown.splitlines() if line.startswith(name)]
        assert count(sum(parameter.numel() for parameter in network.parameters())) in row
    assert f"{stages['prune']['accuracy']:.2%}" in row
    page = re.sub("<[^>]+>", "", Path("tuned/report.html").read_text(encoding="utf-8"))
    removed = r"\d+% of the MACs and \d+% of the parameters were removed\. "
    assert re.search(f"{removed}The test accuracy of the fine-tuned network", page)
    dense_again = done("finetune", "run/checkpoints/train.safetensors", "--out", "again")
    assert "nothing was cut from this network: it has no pruning plan" in squeezed(dense_again.stderr)


# -- init, validate, doctor -------------------------------------------------------------------------------------------


def test_init_lists_what_it_copies() -> None:
    lines = done("init", "--list").stdout.splitlines()
    names = [line.split()[0] for line in lines]
    assert {"digits.yaml", "digits-mlp.yaml"} <= set(names)
    assert all(len(line.split()) > 3 for line in lines)
    assert contents() == {}
    for name in names:
        assert f"Wrote {name}" in done("init", name).stdout
    assert contents().keys() == {*names, "my_code.py"}


def test_init_starts_with_the_digits() -> None:
    assert "Wrote digits.yaml. Edit it, then: bnprune run digits.yaml" in done("init").stdout
    done("validate", "digits.yaml")


def test_init_a_recipe_under_another_name() -> None:
    done("init", "digits-mlp", "--out", "mine.yaml")
    assert contents().keys() == {"mine.yaml"}
    assert document("validate", "mine.yaml")["config"]["model"]["name"] == "mlp"


def test_what_validate_prints_is_a_recipe(recipe: Path) -> None:
    printed = done("validate", recipe, "train.lr=0.03", "--print").stdout
    assert done("validate", write("printed.yaml", printed), "--print").stdout == printed
    assert document("validate", "printed.yaml")["config"]["train"]["lr"] == 0.03


def test_validate_writes_nothing_and_trains_nothing(recipe: Path) -> None:
    before = contents()
    assert "recipe.yaml is valid" in done("validate", recipe).stdout
    assert contents() == before


def test_validate_is_readable(recipe: Path) -> None:
    text = done("validate", recipe).stdout
    assert "{" not in text
    assert "1295 images to train, 143 to validate, 359 to test; 1x16x16, 10 classes" in text
    assert "32 BN channels, 32 of them prunable" in text


UNCLEAR = """\
import torch
from torch.utils.data import Dataset


class Images(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.randn(1, 16, 16), index % 10


def build():
    return Images(), Images()
"""


def test_a_note_on_the_data_is_shown(recipe: Path) -> None:
    write("unclear.py", UNCLEAR)
    line = (recipe, "data.name=", "data.factory=unclear:build", "data.workers=0", "train.epochs=1")
    note = "note: validation images are training images as the training set gives them"
    assert note in done("validate", *line).stdout
    assert note in done("train", *line, "--out", "run").stderr


def test_doctor_names_versions_devices_and_models() -> None:
    text = done("doctor").stdout
    for name in ("torch ", "torchvision ", "devices: ", "vgg11", "no problems found"):
        assert name in text


def test_doctor_explains_a_torchvision_that_does_not_match(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnprune.workflows import doctor as diagnosis

    error = RuntimeError("operator torchvision::nms does not exist")
    monkeypatch.setattr(diagnosis, "_torchvision", lambda problems: problems.append(diagnosis.explain(error)))
    [problem] = document("doctor", exit_code=5)["problems"]
    assert "pip install --upgrade --force-reinstall torch torchvision" in problem


def test_a_plan_that_does_not_say_what_it_was_made_for() -> None:
    plan = document("prune", *CHAIN, "--ratio", "0.5", "--dry-run")["plan"]
    plan["requested"] = {}
    Path("plan.json").write_text(json.dumps(plan))
    text = done("prune", *CHAIN, "--plan", "plan.json", "--dry-run").stdout
    assert "nan" not in text
    assert document("prune", *CHAIN, "--plan", "plan.json", "--dry-run")["target"]["requested"] is None


def test_validate_warns_of_a_training_that_is_too_short(recipe: Path) -> None:
    """One epoch with a tiny λ moves no scale factor to zero: validate prints the warning of the training."""
    weak = ("train.epochs=1", "train.sparsity.lambda=1e-6")
    text = done("validate", recipe, *weak).stdout
    assert "warning: λ = 1e-06 can move γ by" in text
    assert "Train longer (train.epochs)" in text
    [warning] = document("validate", recipe, *weak)["warnings"]
    assert f"warning: {warning}" in done("train", recipe, *weak, "--out", "run").stderr
    assert document("validate", recipe, "train.epochs=60")["warnings"] == []


def test_a_fine_tuning_that_only_harms_leaves_the_network_as_it_was(recipe: Path) -> None:
    result = done("run", recipe, "--out", "harmed", "train.epochs=8", "finetune.lr=1", "finetune.optimizer=adam")
    assert "before training: validation accuracy" in squeezed(result.stderr)
    assert "no epoch was better on the validation images than the network before fine-tuning" in squeezed(result.stderr)
    stages = read_json(Path("harmed/result.json").read_text())["stages"]
    assert stages["finetune"]["chosen"] == "start"
    assert stages["finetune"]["accuracy"] == stages["prune"]["accuracy"]
    kept, cut = (tensor_bytes(Path(f"harmed/checkpoints/{stage}.safetensors")) for stage in ("finetune", "prune"))
    assert kept == cut
