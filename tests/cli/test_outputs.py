"""Outputs: nothing is written over a device, a link, what is read, or the files of a run; and a run has one writer."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bnprune.config.recipe import load_recipe
from bnprune.errors import DataError
from bnprune.runs import pipeline
from bnprune.runs.directory import RunDirectory
from bnprune.runs.files import write_atomically, write_text
from tests.cli.harness import CHAIN, bnprune, contents, done, read_json, refusal, write

# -- what is no regular file ------------------------------------------------------------------------------------------


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path.relative_to(Path.cwd())))


def link_to_device(path: Path) -> None:
    make_device(path.with_name("device"))
    path.symlink_to("device")


def link_to_file(path: Path) -> None:
    write("precious", "mine")
    path.symlink_to("precious")


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


OBSTACLES = {
    "a named pipe": make_pipe,
    "a device": make_device,
    "a socket": make_socket,
    "a symbolic link": link_to_file,
    "a symbolic link to a device": link_to_device,
    "a symbolic link to nothing": link_to_nothing,
}


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_ino, path.lstat().st_mode) for path in folder.iterdir()}


@pytest.mark.parametrize("kind", OBSTACLES)
@pytest.mark.parametrize(
    "line",
    [("prune", *CHAIN, "--out"), ("export", *CHAIN, "--out"), ("init", "digits.yaml", "--out")],
    ids=lambda v: v[0],
)
def test_nothing_but_a_regular_file_is_written_over(line: tuple[str, ...], kind: str, here: Path) -> None:
    OBSTACLES[kind](here / "out.pt")
    before = identities(here)
    message = refusal(5, *line, "out.pt", "--force")
    assert f"'out.pt' is {kind.partition(' to ')[0]}" in message
    assert identities(here) == before


@pytest.mark.parametrize("name", ["slim.pt", "slim.pth", "slim"])
def test_the_name_of_a_checkpoint_tells_its_format(name: str) -> None:
    message = refusal(2, "prune", *CHAIN, "--out", name)
    assert f"--out: checkpoints are safetensors files, which torch.load does not read (got '{name}')" in message
    assert message.endswith("Use 'slim.safetensors'.")
    done("prune", *CHAIN, "--out", name, "--dry-run")


@pytest.mark.parametrize("kind", ["a named pipe", "a symbolic link"])
def test_nothing_but_a_regular_file_becomes_a_picture_or_a_page(
    kind: str, run: Path, trained: Path, here: Path
) -> None:
    OBSTACLES[kind](here / "overview.png")
    before = identities(here)
    assert f"'overview.png' is {kind}" in refusal(5, "report", run, "--out", "overview.png", "--force")
    assert f"'overview.png' is {kind}" in refusal(5, "sweep", trained, "--plot", "overview.png")
    message = refusal(5, "report", run, "--out", "page.html", "--plots", ".", "--force")
    assert f"--plots: 'overview.png' is {kind}" in message
    assert identities(here) == before


def test_the_page_of_a_run_is_not_written_through_a_link(run: Path, here: Path) -> None:
    shutil.copytree(run, here / "run")
    (here / "run/report.html").unlink()
    link_to_file(here / "run/report.html")
    assert "'run/report.html' is a symbolic link" in refusal(5, "report", "run")
    assert (here / "precious").read_text() == "mine"


@pytest.mark.parametrize("kind", ["a named pipe", "a symbolic link to nothing"])
def test_a_run_directory_is_a_folder(kind: str, recipe: Path, here: Path) -> None:
    OBSTACLES[kind](here / "run")
    assert "--out: 'run' is a file. Give the name of a folder." in refusal(
        5, "train", recipe, "--out", "run", "--force"
    )


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json", "env.json", "checkpoints/last.state.pt"])
@pytest.mark.parametrize("option", ["--resume", "--force"])
def test_a_run_does_not_write_through_links(option: str, name: str, recipe: Path, run: Path, here: Path) -> None:
    shutil.copytree(run, here / "run")
    (here / "run" / name).rename(here / "precious")
    (here / "run" / name).symlink_to(here / "precious")
    assert f"'run/{name}' is a symbolic link" in refusal(5, "run", recipe, "--out", "run", option)
    assert (here / "run" / name).is_symlink()


def test_metrics_are_not_appended_through_a_link(here: Path) -> None:
    link_to_file(here / "metrics.jsonl")
    with pytest.raises(DataError, match="metrics.jsonl' cannot be written"):
        RunDirectory(here).append_metrics({"a": 1})
    assert (here / "precious").read_text() == "mine"


@pytest.mark.parametrize("option", ["--resume", "--force"])
def test_a_run_does_not_write_into_linked_folders(option: str, recipe: Path, run: Path, here: Path) -> None:
    shutil.copytree(run, here / "run")
    (here / "run/checkpoints").rename(here / "models")
    (here / "run/checkpoints").symlink_to(here / "models")
    assert "'run/checkpoints' is a symbolic link" in refusal(5, "run", recipe, "--out", "run", option)


# -- what is read, and what belongs to a run --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["itself", "hard link", "through a folder", "run directory"])
def test_the_network_that_is_cut_is_not_overwritten(how: str, run: Path, here: Path) -> None:
    shutil.copytree(run, here / "run")
    source = out = here / "run/checkpoints/train.safetensors"
    if how == "hard link":
        out = here / "link.safetensors"
        out.hardlink_to(source)
    elif how == "through a folder":
        (here / "folder").symlink_to(here / "run/checkpoints")
        out = here / "folder/train.safetensors"
    elif how == "run directory":
        source = here / "run"
    message = refusal(2, "prune", source, "--out", out, "--force")
    assert "is the source of the network" in message or f"belongs to the run '{source}'" in message


def test_weights_and_plans_that_are_read_are_not_overwritten(run: Path, here: Path) -> None:
    torch.save(torch.nn.Linear(1, 1).state_dict(), here / "weights.pt")
    shutil.copy(run / "plan.json", "plan.json")
    for option, name in (("--weights", "weights.pt"), ("--plan", "plan.json")):
        message = refusal(2, "prune", *CHAIN, option, name, "--out", name, "--force")
        assert f"--out: '{name}' is the source of the network" in message


def test_a_recipe_that_is_read_is_not_overwritten(trained: Path, here: Path) -> None:
    write("recipe.pt", "model: {name: mlp}")
    message = refusal(2, "export", trained, "--config", "recipe.pt", "--out", "recipe.pt", "--force")
    assert "--out: 'recipe.pt' is the recipe." in message


@pytest.mark.parametrize("name", ["checkpoints/train.safetensors", "checkpoints/new.pt", "result.json", "plan-2.json"])
def test_the_files_of_a_run_are_not_overwritten_by_other_verbs(name: str, run: Path, here: Path) -> None:
    shutil.copytree(run, here / "run")
    message = refusal(2, "prune", *CHAIN, "--out", f"run/{name}", "--force")
    assert f"--out: 'run/{name}' belongs to the run '{here}/run'." in message


def test_a_project_with_checkpoints_and_a_config_is_no_run(here: Path) -> None:
    write("config.yaml", "model: mine")
    done("prune", *CHAIN, "--out", "checkpoints/slim.safetensors")


@pytest.mark.parametrize("source", ["run", "run/checkpoints/prune.safetensors"])
def test_a_run_does_not_take_the_place_of_what_it_starts_from(source: str, run: Path, here: Path) -> None:
    shutil.copytree(run, here / "run")
    message = refusal(2, "finetune", source, "--out", "run", "--force")
    assert "would be overwritten, and the run starts from it. Choose another folder." in message


def test_a_recipe_called_like_that_of_a_run_is_not_overwritten(recipe: Path) -> None:
    recipe.rename("config.yaml")
    assert "'config.yaml' would be overwritten" in refusal(2, "train", "config.yaml", "--out", ".", "--force")


def test_a_run_is_repeated_in_its_place_by_its_own_recipe(run: Path, here: Path) -> None:
    shutil.copytree(run, here / "run")
    done("train", "run/config.yaml", "train.epochs=1", "--out", "run", "--force")
    assert load_recipe(here / "run/config.yaml").train.epochs == 1
    assert list(read_json((here / "run/result.json").read_text())["stages"]) == ["train"]


# -- one writer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--force", "--resume", ""])
def test_a_run_that_is_going_on_is_left_alone(option: str, recipe: Path, run: Path, here: Path) -> None:
    shutil.copytree(run, here / "run")
    with RunDirectory(here / "run").locked():
        message = refusal(5, "run", recipe, "--out", "run", *([option] if option else []))
    assert "'run' is in use: another process works on this run." in message


def test_a_run_that_has_replaced_its_recipe_still_holds_its_lock(recipe: Path, run: Path, here: Path) -> None:
    shutil.copytree(run, here / "run")
    directory, config = RunDirectory.new(here / "run", force=True), load_recipe(recipe)
    with directory.locked():
        directory.begin(config)
        assert "'run' is in use" in refusal(5, "run", recipe, "--out", "run", "--force")
        assert "'run' is in use" in refusal(5, "run", recipe, "--out", "run", "--resume")


@pytest.mark.parametrize("ended", [False, True], ids=["goes on", "has ended"])
@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_of_two_new_runs_one_wins(
    there: bool, ended: bool, recipe: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one begins, and maybe ends, while this one prepares."""
    original, seen = pipeline.prepare, []
    with contextlib.ExitStack() as other:

        def overtaken(*args: Any) -> Any:
            directory = RunDirectory(here / "run", begun=False)
            with contextlib.ExitStack() as until:
                (until if ended else other).enter_context(directory.locked())
                directory.begin(load_recipe(recipe))
                seen.append(contents())
            return original(*args)

        if there and not ended:
            (here / "run").mkdir()
            other.enter_context(RunDirectory(here / "run", begun=False).locked())
            assert "'run' is in use" in refusal(5, "train", recipe, "--out", "run")
            return
        monkeypatch.setattr(pipeline, "prepare", overtaken)
        if there:
            (here / "run").mkdir()
            monkeypatch.setattr("bnprune.runs.directory.lock", lambda _: None)  # a file system without locks
        result = bnprune("train", recipe, "--out", "run")
    assert result.exit_code == 5
    assert ("filled by another process" if ended else "is in use") in result.stderr
    assert contents() == seen[0]


def test_a_run_that_is_refused_leaves_no_folder(recipe: Path, here: Path) -> None:
    refusal(2, "train", recipe, "model.name=none", "--out", "run")
    assert not (here / "run").exists()


CHILD = """\
import os, sys
from pathlib import Path
from bnprune.runs.lock import lock, unlock
held = lock(Path("."))
(begun, begins), (ended, ends) = os.pipe(), os.pipe()
if os.fork() == 0:
    os.close(ends)
    os.write(begins, b"1")
    os.read(ended, 1)  # until the parent has closed its end
    os._exit(0)
os.read(begun, 1)
unlock(held)
unlock(lock(Path(".")))
"""


def test_a_process_that_loads_data_does_not_keep_the_lock(here: Path) -> None:
    subprocess.run([sys.executable, "-c", CHILD], check=True, timeout=60)


# -- names and temporary files ----------------------------------------------------------------------------------------


def test_a_name_may_be_as_long_as_the_system_allows(here: Path) -> None:
    longest = f"{'n' * 243}.safetensors"
    assert len(longest) == 255
    done("prune", *CHAIN, "--out", longest)
    assert [path.name for path in here.iterdir()] == [longest]
    message = refusal(5, "prune", *CHAIN, "--out", f"n{longest}")
    assert message.endswith("cannot be written: File name too long.")


@pytest.mark.parametrize(
    "line", [("prune", *CHAIN), ("export", *CHAIN, "--format", "pt2"), ("init",)], ids=lambda v: v[0]
)
def test_a_name_that_could_not_be_read_again_is_refused(line: tuple[str, ...]) -> None:
    message = refusal(5, *line, "--out", os.fsdecode(b"\xff.pt2"))
    assert "b'\\xff.pt2' is not a name in UTF-8. Choose another." in message


def test_a_run_in_a_name_that_could_not_be_read_again_is_refused(recipe: Path) -> None:
    assert "is not a name in UTF-8" in refusal(5, "train", recipe, "--out", os.fsdecode(b"run-\xff"))


def test_whatever_a_writer_leaves_beside_its_file_goes(here: Path) -> None:
    def failing(path: Path) -> None:
        path.with_name(".tmpAbCdEf").write_text("of safetensors")
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="No space left on device"):
        write_atomically(here / "slim.safetensors", failing)
    assert contents() == {}


def test_what_a_killed_run_left_half_written_goes_when_it_goes_on(recipe: Path, run: Path, here: Path) -> None:
    shutil.copytree(run, here / "run")
    result = read_json((here / "run/result.json").read_text())
    del result["stages"]["finetune"]
    write("run/result.json", json.dumps(result))
    for folder in ("run", "run/checkpoints"):
        (here / folder / ".bnprune-a1b2c3d4.tmp").mkdir()
        write(f"{folder}/.bnprune-a1b2c3d4.tmp/.tmpAbCdEf", "half")
        write(f"{folder}/.mine.tmp", "mine")
    done("run", recipe, "--out", "run", "--resume")
    assert sorted((here / "run").rglob(".*")) == [here / "run/.mine.tmp", here / "run/checkpoints/.mine.tmp"]


def test_files_have_the_mode_of_the_umask_which_is_never_changed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the process's: a file that another thread makes meanwhile would be open to all."""
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr("os.umask", None)
            write_text(here / "page.html", "text")
    finally:
        os.umask(before)
    assert (here / "page.html").stat().st_mode & 0o777 == 0o640


def test_a_state_that_the_system_refuses_to_extend(here: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(DataError, match="last.state.pt' cannot be written: File too large"):
            RunDirectory(here).save_state("train", {"model": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((here / "checkpoints").iterdir()) == []


# -- a damaged state --------------------------------------------------------------------------------------------------


def changed(path: str, value: Any) -> Callable[[Any], Any]:
    """Put a value in place of the one at a dotted path."""

    def change(state: Any) -> Any:
        *outer, last = (int(part) if part.isdigit() else part for part in path.split("."))
        place = state
        for part in outer:
            place = place[part]
        place[last] = value
        return state

    return change


def without(name: str) -> Callable[[Any], Any]:
    return lambda state: {key: value for key, value in state.items() if key != name}


DAMAGES = {
    "list": lambda _: [1],
    "number": lambda _: 5,
    "other": lambda _: {"a": 1},
    "empty": lambda _: {},
    **{f"no {name}": without(name) for name in ("stage", "metrics_bytes", "seconds", "own", "model", "optimizer")},
    "negative bytes": changed("metrics_bytes", -1),
    "bytes as text": changed("metrics_bytes", "9"),
    "seconds as text": changed("seconds", "9"),
    "own of no process": changed("own", 3),
    "own as text": changed("own", ["text"]),
    "counter as text": changed("own.0.progress.epoch", "1"),
    "counter beyond the end": changed("own.0.progress.epoch", 10**9),
    "step beyond the end": changed("own.0.progress.step", 10**9),
    "negative counter": changed("own.0.progress.epoch", -1),
    "unknown counter": changed("own.0.progress.more", 1),
    "sum of another shape": changed("own.0.progress.loss_sum", torch.zeros(3)),
    "unknown buffer": changed("own.0.buffers", {"a": torch.zeros(1)}),
    "model of another make": changed("model", {"a": torch.zeros(1)}),
    "model as list": changed("model", [torch.zeros(1)]),
    "meta tensors": changed("own.0.progress.correct", torch.zeros((), dtype=torch.int64, device="meta")),
    "scaler": changed("scaler", {"scale": 1.0}),
    "average": changed("average", {}),
    "optimizer as list": changed("optimizer", [1]),
    "optimizer's state": changed("optimizer.state.0", {"exp_avg": torch.zeros(1)}),
    "optimizer's index": changed("optimizer.state.999", {}),
    "optimizer's shape": changed("optimizer.state.0.exp_avg", torch.zeros(1)),
    "optimizer's groups": changed("optimizer.param_groups", []),
    "optimizer's rate": changed("optimizer.param_groups.0.lr", "fast"),
}


@pytest.fixture(scope="module")
def unfinished(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped at the end of its last training, with a line of metrics that its state does not know."""
    folder = tmp_path_factory.mktemp("unfinished") / "run"
    shutil.copytree(run, folder)
    result = json.loads((folder / "result.json").read_text())
    del result["stages"]["finetune"]
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    result["metrics_bytes"] = sum(len(line) for line in lines if '"finetune"' not in line)
    (folder / "result.json").write_text(json.dumps(result))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("more\n")
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_before_anything_is_changed(
    damage: str, recipe: Path, unfinished: Path, here: Path
) -> None:
    shutil.copytree(unfinished, here / "run")
    path = here / "run/checkpoints/last.state.pt"
    torch.save(DAMAGES[damage](torch.load(path)), path)
    message = refusal(5, "run", recipe, "--out", "run", "--resume")
    assert "error: 'run/checkpoints/last.state.pt' is damaged: " in message
    assert message.endswith("To repeat the stage from its beginning, remove the file; finished stages stay.")


def test_a_stage_is_repeated_without_its_damaged_state(recipe: Path, unfinished: Path, run: Path, here: Path) -> None:
    shutil.copytree(unfinished, here / "run")
    (here / "run/checkpoints/last.state.pt").unlink()
    done("run", recipe, "--out", "run", "--resume")
    assert (here / "run/metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    "text",
    ["[1]", "5", '{"stages": 3}', '{"stages": {"train": 1}}', '{"stages": {}, "metrics_bytes": "9"}', "[" * 9**5],
)
def test_damaged_figures_are_refused_before_anything_is_changed(
    text: str, recipe: Path, unfinished: Path, here: Path
) -> None:
    shutil.copytree(unfinished, here / "run")
    write("run/result.json", text)
    assert "'run/result.json' is damaged: " in refusal(5, "run", recipe, "--out", "run", "--resume")


@pytest.mark.parametrize("option", ["--plan", "--weights"])
def test_a_loop_of_links_is_a_file_that_cannot_be_read(option: str, here: Path) -> None:
    (here / "loop.json").symlink_to("loop.json")
    refusal(5, "prune", *CHAIN, option, "loop.json", "--out", "out.safetensors")
