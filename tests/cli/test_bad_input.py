"""What a user may get wrong, on the command line and in recipes: a message that helps, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnprune.errors import ConfigError
from bnprune.runs.preflight import choose_device
from tests.cli.harness import CHAIN, bnprune, contents, document, done, refusal, squeezed, tensor_bytes, write

OWN = ("--model", "own:build", "--input", "1,8,8")
RATIOS = ["0", "1", "1.5", "-1", "nan"]

# -- recipes: every problem at once, each with its line and the nearest name ------------------------------------------

WRONG = """\
sed: 1
model:
  name: mlp
  kwargz: {in_channels: 1}
data: {name: digits, batch_size: "64"}
train:
  epochs: 1.5
  lr: fast
  optimiser: adam
  sparsity: {penalty: l2, lamda: auto}
prune: {ratoi: 0.5}
finetune: 5
"""


def test_all_problems_of_a_recipe_are_told_at_once_with_line_key_value_and_fix() -> None:
    problems = document("validate", write("wrong.yaml", WRONG), exit_code=2)["problems"]
    here = Path.cwd()
    assert [problem.removeprefix(f"{here}/") for problem in problems] == [
        "wrong.yaml:1: sed: unknown key (got 1). Did you mean 'seed'?",
        "wrong.yaml:4: model.kwargz: unknown key (got {'in_channels': 1}). Did you mean 'kwargs'?",
        "wrong.yaml:5: data.batch_size: must be a valid integer (got '64').",
        "wrong.yaml:7: train.epochs: must be a valid integer (got 1.5).",
        "wrong.yaml:8: train.lr: must be a valid number, unable to parse string as a number (got 'fast').",
        "wrong.yaml:9: train.optimiser: unknown key (got 'adam'). Did you mean 'optimizer'?",
        "wrong.yaml:10: train.sparsity.penalty: must be 'l1', 'l1-proximal', 'polarization', "
        "'group-lasso', 'mac-weighted-l1' or 'none' (got 'l2').",
        "wrong.yaml:10: train.sparsity.lamda: unknown key (got 'auto'). Did you mean 'lambda'?",
        "wrong.yaml:11: prune.ratoi: unknown key (got 0.5). Did you mean 'ratio'?",
        "wrong.yaml:12: finetune: must be a section of keys (got 5).",
    ]


@pytest.mark.parametrize("verb", ["run", "train", "validate"])
def test_a_wrong_recipe_starts_nothing(verb: str) -> None:
    message = refusal(2, verb, write("wrong.yaml", WRONG))
    assert message.endswith("10 problems. Nothing was started.")


def test_an_unknown_key_without_a_near_name_gets_the_valid_ones(recipe: Path) -> None:
    message = refusal(2, "validate", recipe, "prune.xyz=3")
    assert (
        "command line: prune.xyz: unknown key (got 3). Valid here: ratio, macs, params, latency_ms, min_channels"
        in message
    )


def test_required_keys() -> None:
    message = refusal(2, "validate", write("recipe.yaml", "train: {epochs: 1}\n"))
    assert "model: is required." in message
    assert "data: is required." in message


@pytest.mark.parametrize("section", ["model", "data"])
def test_name_and_factory_exclude_each_other(section: str, recipe: Path) -> None:
    message = refusal(2, "validate", recipe, f"{section}.factory=own:build")
    assert f"{section}: give either 'name' or 'factory'" in message


def test_a_key_given_twice_is_refused_with_both_lines() -> None:
    text = "model: {name: mlp}\ndata: {name: digits}\nprune:\n  ratio: 0.5\n  ratio: 0.6\n"
    message = refusal(2, "validate", write("twice.yaml", text))
    assert "twice.yaml:5: prune.ratio: is given twice (first in line 4)." in message


def test_a_section_given_twice_is_one_problem() -> None:
    text = "model: {name: mlp}\ndata: {name: digits}\nprune: {ratio: 0.5}\nprune: {ratio: 0.6}\n"
    assert len(document("validate", write("twice.yaml", text), exit_code=2)["problems"]) == 1


def test_a_key_of_a_section_given_twice_stands_where_it_counts() -> None:
    text = "model: {name: mlp}\ndata: {name: digits}\nprune: {ratio: 0.5}\nprune: {ratio: 6}\n"
    problems = document("validate", write("twice.yaml", text), exit_code=2)["problems"]
    assert [problem.rpartition("twice.yaml:")[2].partition(": ")[0] for problem in problems] == ["4", "4"]


@pytest.mark.parametrize(
    ("text", "expected_message"),
    [
        ("", "recipe.yaml: is empty. `bnprune init` writes a recipe to start from."),
        ("# later\n", "recipe.yaml: is empty."),
        ("- model\n- data\n", "recipe.yaml:1: expected keys such as 'model:' and 'data:', got ['model', 'data']."),
        ("just text\n", "recipe.yaml:1: expected keys such as 'model:' and 'data:', got 'just text'."),
        ("model: {name: mlp\ndata: [\n", "recipe.yaml:2: is not YAML: expected ',' or '}'"),
        ("model:\n\tname: mlp\n", r"recipe.yaml:2: is not YAML: found character '\t'"),
    ],
    ids=["empty", "comment", "list", "scalar", "bracket", "tab"],
)
def test_a_file_that_is_no_recipe(text: str, expected_message: str) -> None:
    assert expected_message in refusal(2, "run", write("recipe.yaml", text))


def test_a_recipe_that_does_not_exist() -> None:
    assert "absent.yaml: there is no such file. `bnprune init --list`" in refusal(2, "run", "absent.yaml")


def test_a_recipe_that_is_a_folder(here: Path) -> None:
    (here / "folder.yaml").mkdir()
    assert "folder.yaml: cannot be read: Is a directory." in refusal(2, "run", "folder.yaml")


def test_a_recipe_that_is_no_text(here: Path) -> None:
    (here / "binary.yaml").write_bytes(b"\xff\xfe\x00a")
    assert "binary.yaml: is not a text file." in refusal(2, "run", "binary.yaml")


def test_a_recipe_that_may_not_be_read(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, _: int) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("bnprune.config.recipe.read_text", denied)
    assert "recipe.yaml: cannot be read: Permission denied." in refusal(2, "run", recipe)


def test_a_recipe_runs_no_code(here: Path) -> None:
    text = "model: {name: mlp}\ndata: !!python/object/apply:os.mkdir [pwned]\n"
    assert "recipe.yaml:2: is not YAML" in refusal(2, "run", write("recipe.yaml", text))
    assert not (here / "pwned").exists()


def test_a_recipe_without_a_stage() -> None:
    text = "model: {name: mlp}\ndata: {name: digits}\n"
    message = refusal(2, "run", write("recipe.yaml", text))
    assert "has no stage. Add one of: train, prune, finetune." in message


@pytest.mark.parametrize(
    ("override", "expected_message"),
    [
        ("train.lr", "'train.lr': expected key=value, such as train.lr=0.05."),
        ("=3", "'=3': expected key=value"),
        ("train..lr=3", "'train..lr=3': expected key=value"),
        ("prune.ratio=[0", "prune.ratio: '[0' is not YAML: "),
        ("train.lr=", "train.lr: must be a valid number (got nothing)."),
        ("prune=0.5", "prune: must be a section of keys (got 0.5)."),
        ("train.epochs=0", "train.epochs: must be greater than or equal to 1 (got 0)."),
        ("data.augment=1", "data.augment: must be a valid boolean (got 1)."),
        ("train.sparsity.lambda=strong", "train.sparsity.lambda: must be 'auto' or a valid number"),
    ],
)
def test_a_bad_override(override: str, expected_message: str, recipe: Path) -> None:
    assert f"command line: {expected_message}" in refusal(2, "train", recipe, override)


def test_a_pattern_instead_of_a_list_of_patterns(recipe: Path) -> None:
    assert "prune.exclude: must be a list (got 'layers.1')" in refusal(2, "validate", recipe, "prune.exclude=layers.1")


def test_an_unknown_device(recipe: Path) -> None:
    message = refusal(2, "validate", recipe, "device=gpu")
    assert "device: 'gpu' cannot be used" in message
    assert message.endswith("Choose auto, cpu, cuda or mps.")


def test_an_unknown_device_is_told_briefly(recipe: Path) -> None:
    assert "privateuseone" not in refusal(2, "validate", recipe, "device=gpu")


def test_a_device_that_computes_nothing(recipe: Path) -> None:
    assert "device: 'meta' cannot be used" in refusal(2, "validate", recipe, "device=meta")


DEVICES = ["privateuseone", "hpu", "xla", "vulkan", "opengl", "cuda:-1", "cuda:99", "lazy", ""]


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_that_is_not_there_in_whatever_way_it_fails(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device: '{device}' cannot be used: ") as caught:
        choose_device(device)
    assert "aten::" not in str(caught.value)
    assert "bug" not in str(caught.value)


# -- ratios -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_ratio_out_of_range(ratio: str) -> None:
    message = refusal(2, "prune", *CHAIN, "--ratio", ratio)
    assert f"ratio: must be between 0 and 1, both excluded (got {float(ratio)}). 0.5 removes half." in message


@pytest.mark.parametrize("ratio", [*RATIOS, ".nan"])
def test_a_ratio_out_of_range_in_a_recipe(ratio: str, recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("ratio: 0.5", f"ratio: {ratio}"))
    message = refusal(2, "run", recipe)
    bound = "greater than 0" if ratio in ("0", "-1") else "less than 1"
    assert f"recipe.yaml:5: prune.ratio: must be 'auto' or {bound} (got" in message


def test_a_ratio_that_is_no_number() -> None:
    message = refusal(2, "prune", *CHAIN, "--ratio", "half")
    assert "Invalid value for '--ratio'" in message
    assert "expected a number" in message


def test_a_floor_below_one() -> None:
    message = refusal(2, "prune", *CHAIN, "--min-channels", "0")
    assert "--min-channels: must be at least 1 (got 0)." in message


# -- networks: by name, by factory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "expected_message"),
    [
        ("mpl", "--model: 'mpl' is unknown. Did you mean 'mlp'? Your own: package.module:function."),
        ("resnet18", "--model: 'resnet18' is unknown. Did you mean 'torchvision/resnet18'?"),
        ("torchvision/resnet19", "--model: torchvision has no 'resnet19'. Did you mean 'resnet18'?"),
        ("own:", "--model: expected package.module:function (got 'own:')."),
        (
            "onw:build",
            "in PYTHONPATH, or among the installed packages. Change to the folder that has it (cd), or put that folder "
            "into PYTHONPATH.",
        ),
        ("onw:build", "--model: 'onw:build' cannot be imported: there is no module 'onw' in the current folder (/"),
        ("own:biuld", "--model: the module 'own' has no 'biuld'. Did you mean 'build'?"),
        ("own:not_callable", "--model: 'own:not_callable' is not callable."),
        ("own:fails", "--model: own:fails() failed: RuntimeError: no luck today"),
        ("own:no_module", "--model: own:no_module must return a torch.nn.Module (got dict)."),
    ],
)
def test_a_model_that_cannot_be_built(model: str, expected_message: str, own: Path) -> None:
    assert expected_message in refusal(2, "prune", "--model", model, "--input", "1,8,8")


def test_a_file_in_the_place_of_a_module(own: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def suggested(model: object) -> str:
        message = refusal(2, "inspect", "--model", f"{model}:build", "--input", "1,8,8")
        assert f"--model: expected a module, not a file (got '{model}:build'). Write " in message
        return message.partition(" Write ")[2]

    (here / "src").mkdir()
    (here / "src" / "mine.py").write_text(own.read_text())
    for given in ("src/mine.py", "./src/mine.py", here / "src" / "mine.py"):
        assert suggested(given) == "src.mine:build."
    done("inspect", "--model", "src.mine:build", "--input", "1,8,8")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert suggested("../src/mine.py").startswith("mine:build, and put the folder into PYTHONPATH: export PYTHONPATH=/")


def test_a_module_that_cannot_be_imported() -> None:
    write("broken.py", "import nothing_of_this_name\n")
    message = refusal(2, "inspect", "--model", "broken:build")
    assert "--model: 'broken:build' cannot be imported: there is no module 'nothing_of_this_name'" in message


def test_a_module_that_fails_while_it_is_imported() -> None:
    write("broken.py", "1 / 0\n")
    message = refusal(2, "inspect", "--model", "broken:build")
    assert "--model: importing 'broken' failed: ZeroDivisionError: division by zero" in message


@pytest.mark.parametrize(
    ("override", "expected_message"),
    [
        ("model.name=mpl", "model: 'mpl' is unknown. Did you mean 'mlp'?"),
        ("model.name=net:Photos", "goes into 'factory' instead of 'name': factory: net:Photos."),
        ("model.name=torchvision/resnet19", "torchvision has no 'resnet19'. Did you mean 'resnet18'?"),
        ("model.kwargs.hiden=[8]", "'mlp' has no argument 'hiden'. Did you mean 'hidden'?"),
        ("model.kwargs.hidden=[-1]", "'mlp' cannot be built with"),
        ("data.name=digit", "data.name: 'digit' is unknown. Did you mean 'digits'?"),
    ],
)
def test_an_unknown_name_in_a_recipe(override: str, expected_message: str, recipe: Path) -> None:
    assert expected_message in refusal(2, "validate", recipe, override)


def test_no_network_given(here: Path) -> None:
    for verb in ("prune", "inspect", "evaluate"):
        assert "no network given. Name a run directory or checkpoint, or a model and the shape" in refusal(2, verb)


@pytest.mark.parametrize(
    ("argument", "expected_message"),
    [
        ("width", "--model-arg: expected key=value, such as num_classes=10 (got 'width')."),
        ("wi-dth=4", "--model-arg: expected key=value, such as num_classes=10 (got 'wi-dth=4')."),
        ("width=[4", "--model-arg: width: '[4' is not YAML: "),
        ("widht=4", "own:build has no argument 'widht'. Did you mean 'width'?"),
    ],
)
def test_a_bad_argument_of_the_model(argument: str, expected_message: str, own: Path) -> None:
    assert expected_message in refusal(2, "prune", *OWN, "--model-arg", argument)


def test_an_argument_without_a_model_is_refused(trained: Path) -> None:
    assert "--model-arg" in refusal(2, "inspect", trained, "--model-arg", "hidden=[4]")


# -- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [" ", "a,b", "3,,8", "3,0,8", "3,-8,8", "3,8.5,8", "(3,8,8)"])
def test_a_malformed_input_shape(shape: str) -> None:
    message = refusal(2, "prune", "--model", "tests.nets:chain", f"--input={shape}")
    assert "--input: expected the shape of one input without the batch, such as 3,224,224" in message
    assert f"(got '{shape}')" in message


def test_no_input_shape() -> None:
    message = refusal(2, "prune", "--model", "tests.nets:chain")
    assert "tests.nets:chain: the shape of its input is not known. Give it as C,H,W: --input 3,224,224." in message


@pytest.mark.parametrize(("shape", "got"), [("4,8,8", "input[1, 4, 8, 8]"), ("3,8", "input[1, 1, 3, 8]")])
def test_an_input_shape_that_does_not_fit(shape: str, got: str) -> None:
    message = refusal(2, "prune", "--model", "tests.nets:chain", "--input", shape)
    assert "the forward pass of the network fails in 0.0:" in message
    assert f"expected {got} to have 3 channels" in message
    assert "Check the shape of the input" in message


def test_an_input_shape_without_channels(own: Path) -> None:
    assert refusal(2, "prune", "--model", "own:build", "--input", "8,8").endswith("--input 1,8,8.")


def test_an_input_smaller_than_a_kernel(here: Path) -> None:
    layers = "nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 5)"
    write("plain.py", f"from torch import nn\n\n\ndef build(): return nn.Sequential({layers})\n")
    message = refusal(2, "prune", "--model", "plain:build", "--input", "3,4,4", "--ratio", "0.5")
    assert "Kernel size can't be greater than actual input size. Check the shape of the input" in message


@pytest.mark.parametrize(
    ("override", "expected_message"),
    [
        (
            "model.kwargs.image_size=8",
            "the network does not fit the data: its forward pass fails on images of 1x16x16",
        ),
        (
            "model.kwargs.num_classes=5",
            "the data has 10 classes, so the network must return as many scores; it returns 5",
        ),
    ],
)
@pytest.mark.parametrize("verb", ["run", "train", "validate"])
def test_a_network_that_does_not_fit_the_data(verb: str, override: str, expected_message: str, recipe: Path) -> None:
    out = ["--out", "run"] if verb != "validate" else []
    assert f"model: {expected_message}" in refusal(2, verb, recipe, override, *out)


def test_more_classes_than_the_data_has_are_noted(recipe: Path) -> None:
    """They are legal: a network of 1000 classes can be fine-tuned on 10."""
    note = "the network returns 1000 class scores, and the data has 10 classes"
    many = "model.kwargs.num_classes=1000"
    shown = [done("validate", recipe, many), done("run", recipe, many, "--out", "run"), done("validate", recipe)]
    found = [squeezed(result.output) for result in shown]
    assert [f"note: {note}" in text for text in found] == [True, True, False]
    assert "num_classes=10 (model.kwargs)" in found[0]
    done("init", "digits-segmentation.yaml")
    masks = done("validate", "digits-segmentation.yaml", "model.kwargs.num_classes=12")
    assert "the network returns 12 class scores, and the data has 11 classes" in squeezed(masks.output)
    assert "class scores" not in done("validate", "digits-segmentation.yaml").output


@pytest.mark.parametrize("verb", ["train", "validate"])
def test_a_batch_too_small_for_batchnorm(verb: str, recipe: Path) -> None:
    out = ["--out", "run"] if verb == "train" else []
    message = refusal(2, verb, recipe, "data.batch_size=1", *out)
    assert "data.batch_size: the network cannot be trained on single images" in message


def test_a_batch_of_one_image_is_enough_where_batchnorm_sees_several_values(own: Path, recipe: Path) -> None:
    factory = ("model.name=", "model.kwargs={}", "model.factory=own:build")
    done("validate", recipe, *factory, "data.batch_size=1")


def test_a_split_without_images(recipe: Path) -> None:
    message = refusal(5, "train", recipe, "data.limit=1", "--out", "run")
    assert "data: the validation split holds no images." in message


def test_a_network_that_does_not_fit_the_data_it_is_evaluated_on(recipe: Path) -> None:
    message = refusal(2, "evaluate", "--model", "mlp", "--model-arg", "image_size=8", "--config", recipe)
    assert "mlp: the network does not fit the data" in message


# -- outputs and runs -------------------------------------------------------------------------------------------------


def test_an_output_is_not_overwritten_without_force(here: Path, trained: Path) -> None:
    out = here / "slim.safetensors"
    done("prune", trained, "--out", out, "--ratio", "0.25")
    assert "slim.safetensors' exists. Choose another name, or overwrite it: --force." in refusal(2, "prune", trained)
    before = tensor_bytes(out)
    done("prune", trained, "--out", out, "--ratio", "0.5", "--force")
    assert {name: len(data) for name, data in tensor_bytes(out).items()} != {k: len(v) for k, v in before.items()}


def test_a_dry_run_does_not_mind_an_output_that_exists(here: Path, trained: Path) -> None:
    (here / "slim.safetensors").write_text("mine")
    done("prune", trained, "--dry-run")
    assert (here / "slim.safetensors").read_text() == "mine"


def test_a_run_is_not_overwritten_without_force(recipe: Path, here: Path) -> None:
    (here / "run").mkdir()
    write("run/metrics.jsonl", "of an earlier run\n")
    write("run/notes.txt", "mine\n")
    assert "--out: 'run' exists. Choose another name, or overwrite it: --force." in refusal(
        2, "train", recipe, "--out", "run"
    )
    done("train", recipe, "train.epochs=1", "--out", "run", "--force")
    assert "earlier" not in (here / "run/metrics.jsonl").read_text()
    assert (here / "run/notes.txt").read_text() == "mine\n"


def test_a_recipe_is_not_overwritten_without_force() -> None:
    path = write("digits.yaml", "mine\n")
    assert "'digits.yaml' exists" in refusal(2, "init")
    done("init", "--force")
    assert path.read_text() != "mine\n"


def test_an_unknown_recipe() -> None:
    assert "there is no recipe 'digts'. Did you mean 'digits.yaml'?" in refusal(2, "init", "digts")


WRONG_STARTS = ["model.name=mpl", "data.name=mnist", "device=gpu", "prune.exclude=[nowhere]"]


@pytest.mark.parametrize("override", WRONG_STARTS)
def test_a_run_that_cannot_start_leaves_nothing(override: str, recipe: Path) -> None:
    """Otherwise the corrected command is refused: its --out exists."""
    before = contents()
    assert bnprune("run", recipe, override, "--out", "run").exit_code in (2, 5)
    assert contents() == before


@pytest.mark.parametrize("override", WRONG_STARTS)
def test_force_keeps_the_earlier_run_when_the_new_one_cannot_start(override: str, recipe: Path, here: Path) -> None:
    (here / "run" / "checkpoints").mkdir(parents=True)
    write("run/checkpoints/train.safetensors", "a night's work")
    before = contents()
    assert bnprune("run", recipe, override, "--out", "run", "--force").exit_code in (2, 5)
    assert contents() == before


def test_resume_without_a_run(recipe: Path) -> None:
    assert "--resume: say which run: --out DIR." in refusal(2, "train", recipe, "--resume")
    message = refusal(2, "train", recipe, "--resume", "--out", "absent")
    assert "--resume: 'absent' is not a run directory (it has no config.yaml)." in message


def test_a_plan_is_replayed_as_it_is(trained: Path) -> None:
    message = refusal(2, "prune", trained, "--plan", "plan.json", "--ratio", "0.3")
    assert "--plan replays a plan as it is; leave --ratio out." in message


@pytest.mark.parametrize("option", [("--exclude", "layers.1"), ("--min-channels", "20")])
def test_a_plan_is_replayed_as_it_is_whatever_else_is_asked(option: tuple[str, str], trained: Path, run: Path) -> None:
    assert option[0] in refusal(2, "prune", trained, "--plan", run / "plan.json", *option)


def test_weights_go_with_a_model(trained: Path) -> None:
    message = refusal(2, "inspect", trained, "--weights", trained)
    assert "--weights: a checkpoint has its own weights; only a network given by its name takes others." in message


def test_two_recipes_for_one_finetuning(run: Path) -> None:
    message = refusal(2, "finetune", run, "a.yaml", "b.yaml", "--out", "out")
    assert "expected one recipe, got a.yaml, b.yaml." in message


def test_a_network_without_a_recipe_cannot_be_evaluated() -> None:
    message = refusal(2, "evaluate", "--model", "mlp")
    assert "no recipe is stored with it. Give one that names the data: --config CONFIG.yaml" in message


NETWORK = "NETWORK.safetensors"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("finetune RECIPE --out tuned", f"finetune {NETWORK} --config RECIPE --out tuned"),
        ("finetune RECIPE RUN finetune.epochs=2", "finetune RUN --config RECIPE finetune.epochs=2"),
        ("evaluate RECIPE RUN", "evaluate RUN --config RECIPE"),
        ("evaluate RECIPE --model mlp", "evaluate --config RECIPE --model mlp"),
        ("export RECIPE --format pt2", f"export {NETWORK} --config RECIPE --format pt2"),
        ("finetune RECIPE --config RECIPE", ""),
        ("inspect RECIPE", ""),
    ],
)
def test_a_recipe_in_the_place_of_a_network_is_given_as_an_option(
    given: str, wanted: str, run: Path, recipe: Path
) -> None:
    given, wanted = (text.replace("RECIPE", "recipe.yaml").replace("RUN", str(run)) for text in (given, wanted))
    message = refusal(5, *given.split())
    assert "'recipe.yaml' is a recipe, not a network." in message
    assert message.partition("with a network that you have: ")[2] == (f"bnprune {wanted}" if wanted else "")


@pytest.mark.parametrize("line", [("evaluate",), ("sweep", "--at", "0.5"), ("sensitivity", "--at", "0.5")], ids=str)
def test_a_recipe_stands_beside_a_network(line: tuple[str, ...], run: Path, recipe: Path) -> None:
    done("prune", "--model", "mlp", "--model-arg", "image_size=16", "--model-arg", "hidden=[32]", "--input", "1,16,16")
    done(line[0], "slim.safetensors", recipe, "data.batch_size=32", *line[1:])
    assert "'data.name': expected key=value" in refusal(2, line[0], run, "data.name", *line[1:])


@pytest.mark.parametrize("verb", ["evaluate", "finetune"])
def test_the_model_of_a_checkpoint_cannot_be_overridden(verb: str, run: Path) -> None:
    out = ["--out", "out"] if verb == "finetune" else []
    assert "'model.name=vgg11': the network is the one given" in refusal(2, verb, run, "model.name=vgg11", *out)


# -- what cannot be pruned --------------------------------------------------------------------------------------------


def test_a_pattern_that_matches_nothing() -> None:
    message = refusal(2, "prune", *CHAIN, "--exclude", "backbone.*")
    assert "exclude: no layer matches 'backbone.*'. `bnprune inspect` lists the layers." in message


def test_a_pattern_that_nearly_matches() -> None:
    assert "exclude: no layer matches '3.11'. Did you mean '3.1'?" in refusal(2, "prune", *CHAIN, "--exclude", "3.11")


def test_a_network_without_batchnorm(own: Path) -> None:
    message = refusal(3, "prune", "--model", "own:without_batchnorm", "--input", "1,8,8")
    assert "the network has no BatchNorm with scale factors" in message
    assert "Use a network with BatchNorm1d, 2d or 3d layers" in message


def test_sparse_training_of_a_network_without_batchnorm(own: Path, recipe: Path) -> None:
    message = refusal(3, "validate", recipe, "model.name=", "model.kwargs={}", "model.factory=own:without_batchnorm")
    assert "BatchNorm" in message


def test_a_floor_above_every_width() -> None:
    message = refusal(3, "prune", *CHAIN, "--min-channels", "100")
    assert "nothing can be pruned: no layer has more channels than it must keep (min_channels)." in message


def test_everything_excluded() -> None:
    message = refusal(3, "prune", *CHAIN, "--exclude", "*")
    assert "nothing can be pruned: every BatchNorm channel must stay." in message
    assert "is excluded by '*'" in message


@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_a_ratio_too_small_for_a_channel(option: tuple[str, ...]) -> None:
    message = refusal(3, "prune", *CHAIN, "--ratio", "0.0001", *option)
    assert "nothing is removed: ratio 0.0001 of 36 prunable channels is 0.0036" in message
    assert "Raise the ratio." in message
