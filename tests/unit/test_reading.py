"""Text, JSON, YAML and plans from anyone: bounded in size, depth, numbers and time."""

from __future__ import annotations

import os
import time
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated_types import Ge, Gt, Le, Lt

import bnprune
from bnprune.config.bounded_reading import parse_json, read_text, require_batch, require_shape
from bnprune.config.recipe import amend, load_recipe
from bnprune.config.schema import OptimisationConfig, PipelineConfig, Section, SparsityConfig
from bnprune.errors import first_line, quoted, shortened
from bnprune.pruning.plan import MOST_PLANS, read_plans
from bnprune.training.lr_schedule import learning_rate
from bnprune.training.penalties.lambda_schedule import TravelSchedule

GOOD = "model: {name: mlp}\ndata: {name: digits}\n"


def aliases(levels: int = 9, width: int = 9, separator: str = "\n") -> str:
    """Lists of lists, each of which stands for the one before it so many times."""
    lines = [f"a0: &a0 [{', '.join('x' * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return separator.join(lines)


def refused(folder: Path, text: str, *overrides: str) -> str:
    """Load a recipe that must be refused soon; return the message without the folder."""
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    started = time.perf_counter()
    with pytest.raises(bnprune.ConfigError) as caught:
        load_recipe(path, overrides)
    assert time.perf_counter() - started < 10
    assert len(str(caught.value)) < 1000
    return str(caught.value).replace(f"{folder}/", "")


# -- files ------------------------------------------------------------------------------------------------------------


def test_only_regular_files_of_bounded_size_are_read(tmp_path) -> None:
    (tmp_path / "text").write_bytes("äb\r\nc".encode())
    assert read_text(tmp_path / "text", 6) == "äb\nc"
    os.mkfifo(tmp_path / "fifo")
    for path, limit, expected_message in (
        (tmp_path / "text", 5, "it is larger than"),
        (tmp_path / "fifo", 99, "it is not a regular file"),
        (Path("/dev/zero"), 99, "it is not a regular file"),
        (tmp_path, 99, "Is a directory"),
        (tmp_path / "absent", 99, "No such file"),
    ):
        with pytest.raises(OSError, match=expected_message) as caught:
            read_text(path, limit)
        assert expected_message in (caught.value.strerror or "")


def test_a_file_that_does_not_tell_its_size_is_bounded_too() -> None:
    if not Path("/proc/self/status").is_file():
        pytest.skip("no /proc here")
    with pytest.raises(OSError, match="it is larger than"):
        read_text(Path("/proc/self/status"), 10)


# -- text of files in messages -----------------------------------------------------------------------------------------


def test_what_is_quoted_is_short_whatever_it_is() -> None:
    bomb: Any = [1]
    for _ in range(60):
        bomb = [bomb] * 9
    cycle: list[Any] = []
    cycle.append(cycle)
    for value in (bomb, cycle, {"a": cycle}, 10**5000, "x" * 10**6, dict.fromkeys(range(10**5), "y")):
        assert len(quoted(value)) <= 60
    assert quoted({"lr": 1}) == "{'lr': 1}"
    assert quoted("ab") == "'ab'"


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert shortened("a\x1b]0;b\u202ec") == r"a\x1b]0;b\u202ec"
    assert first_line(ValueError("\x1b[31mred\nmore")) == r"\x1b[31mred"
    assert len(first_line(ValueError("x" * 10**6))) <= 400


# -- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected_message"),
    [
        ("[" * 100_000, "deeper than 64"),
        ("[" * 65 + "]" * 65, "deeper than 64"),
        ("[" * 100_000 + "]" * 100_000, "deeper than 64"),
        ("1" * 5000, "an integer of 5000 digits"),
        ("[1e400]", "1e400, which is too large"),
        ("[NaN]", "NaN, which is not JSON"),
        ("[-Infinity]", "Infinity, which is not JSON"),
        (r'"\ud800"', "surrogates"),
        ("[1" + " " * 1000 + "]", "longer than 1000"),
        ("{", "Expecting"),
    ],
    ids=lambda value: value[:9],
)
def test_json_is_read_strictly(text: str, expected_message: str) -> None:
    limit = 1000 if expected_message == "longer than 1000" else 1 << 20
    with pytest.raises(ValueError, match=expected_message):
        parse_json(text, limit)


def test_json_that_is_right_is_read() -> None:
    assert parse_json(r'{"a": [1, -2.5e3, null, true, "\ud83d\ude00"]}') == {"a": [1, -2500.0, None, True, "😀"]}
    assert parse_json("[" * 64 + "]" * 64)


# -- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected_message"),
    [
        (GOOD + aliases(), "recipe.yaml:7: has more than 10000 values, counting those behind aliases."),
        (f"model: {{name: mlp, kwargs: {{{aliases(separator=', ')}}}}}", "recipe.yaml:1: has more than 10000 values"),
        (GOOD + "x: &x [*x]", "recipe.yaml:3: has an alias inside the value it refers to."),
        ("model: {name: mlp, kwargs: &k {a: *k}}", "recipe.yaml:1: has an alias inside the value it refers to."),
        (GOOD + "x: " + "[" * 3000 + "]" * 3000, "recipe.yaml:3: is nested deeper than 64 levels."),
        (GOOD + "x: " + "[" * 3000, "recipe.yaml:3: is nested deeper than 64 levels."),
        (GOOD + f"a: &a {'[' * 50}{']' * 50}\nb: {'[' * 50}*a{']' * 50}", "recipe.yaml: is nested deeper than 64"),
        (GOOD + "seed: " + "1" * 5000, "recipe.yaml:3: has a number of more than 100 characters."),
        (GOOD + "seed: 0x" + "f" * 100_000, "recipe.yaml:3: has a number of more than 100 characters."),
        (GOOD + "seed: 1" + ":1" * 100_000, "recipe.yaml:3: has a number of more than 100 characters."),
        (GOOD + "seed: !!int ''", "recipe.yaml:3: has '', which is not of the type int."),
        (GOOD + "baseline: !!bool x", "recipe.yaml:3: has 'x', which is not of the type bool."),
        (GOOD + "x: !!binary aGVsbG8=", "recipe.yaml:3: is not YAML: could not determine a constructor"),
        (GOOD + "k" * 500_000, "recipe.yaml:"),
        (GOOD + "? " + "k" * 500_000, "recipe.yaml:3: kkk"),
        ("#" * (1 << 20) + "\n" + GOOD, "recipe.yaml: cannot be read: it is larger than 1 MB."),
        (GOOD.replace("mlp", "m" * 1000), "recipe.yaml:1: model.name: must have at most 500 characters (got 'mmm"),
        (GOOD.replace("digits", '"digits", root: "a\\0b"'), "recipe.yaml:2: data.root: must be a path"),
    ],
    ids=[
        *("aliases", "aliases in kwargs", "alias in itself", "alias in itself, in kwargs", "deep", "deep, open"),
        *("deep by alias", "digits", "hexadecimal", "sexagesimal", "int tag", "bool tag", "binary tag", "long line"),
        *("long key", "large", "long name", "NUL in a path"),
    ],
)
def test_a_recipe_that_is_a_bomb(tmp_path, text: str, expected_message: str) -> None:
    assert expected_message in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "expected_message"),
    [
        (f"model.kwargs={{{aliases(separator=', ')}}}", "has more than 10000 values"),
        ("train.epochs=" + "1" * 5000, "command line: train.epochs: '1111"),
        ("model.kwargs.x=" + "[" * 3000, "is nested deeper than 64 levels"),
        (".".join("a" * 3000) + "=1", "expected key=value"),
        ("x" * 100_000, "expected key=value"),
    ],
    ids=["aliases", "digits", "deep", "deep key", "long"],
)
def test_an_override_that_is_a_bomb(tmp_path, override: str, expected_message: str) -> None:
    assert expected_message in refused(tmp_path, GOOD, override)


def test_of_very_many_problems_the_first_are_told(tmp_path) -> None:
    (tmp_path / "many.yaml").write_text(GOOD + "".join(f"k{n}: 1\n" for n in range(1000)))
    with pytest.raises(bnprune.ConfigError, match=r"\(52 lines are left out\) \.\.\.\n1000 problems") as caught:
        load_recipe(tmp_path / "many.yaml")
    assert len(caught.value.problems) == 100


def test_aliases_and_merged_keys_of_a_sensible_recipe_work(tmp_path) -> None:
    text = GOOD + "train: &t {epochs: 3, lr: 0.2}\nfinetune: {<<: *t, lr: 0.1}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    config = load_recipe(tmp_path / "recipe.yaml")
    assert (config.finetune.epochs, config.finetune.lr, config.train.lr) == (3, 0.1, 0.2)


def test_an_override_of_a_section_leaves_its_alias_alone(tmp_path) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD + "train: &t {epochs: 3}\nfinetune: *t\n")
    config = load_recipe(tmp_path / "recipe.yaml", ["train.epochs=7"])
    assert (config.train.epochs, config.finetune.epochs) == (7, 3)


def bounds(annotation: Any, metadata: tuple[Any, ...]) -> list[tuple[Any, tuple[Any, ...]]]:
    """The numeric types in an annotation, each with what is known of its range."""
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *more = typing.get_args(annotation)
        more = [part for item in more for part in getattr(item, "metadata", [item])]
        return bounds(inner, (*metadata, *more))
    arguments = [argument for argument in typing.get_args(annotation) if not isinstance(argument, str)]
    if arguments:
        return [found for argument in arguments for found in bounds(argument, metadata)]
    return [(annotation, metadata)] if annotation in (int, float) else []


def sections(kind: type[Section] = Section) -> list[type[Section]]:
    return [*kind.__subclasses__(), *(below for section in kind.__subclasses__() for below in sections(section))]


NUMBERS = [
    (section, name, number)
    for section in sections()
    for name, field in section.model_fields.items()
    for number in bounds(field.annotation, tuple(field.metadata))
]


@pytest.mark.parametrize(("section", "name", "number"), NUMBERS, ids=lambda value: value if type(value) is str else "")
def test_every_number_of_a_recipe_has_bounds(section: type[Section], name: str, number: tuple[Any, Any]) -> None:
    low = [getattr(item, "ge", getattr(item, "gt", None)) for item in number[1] if isinstance(item, Ge | Gt)]
    high = [getattr(item, "le", getattr(item, "lt", None)) for item in number[1] if isinstance(item, Le | Lt)]
    assert low
    assert low[0] >= 0
    assert high
    assert high[0] <= {"seed": 2**63, "lr": 1e20}.get(name, 2**31)


def test_the_numbers_of_a_recipe_were_found() -> None:
    assert len(NUMBERS) > 50
    assert {"lambda_", "epochs", "mixup", "layer_ratios", "milestones"} <= {name for _, name, _ in NUMBERS}


EXTREMES = [
    *("train.epochs=1000000000000", "data.batch_size=100000000000000000000", "model.gamma_init=1e300"),
    *("train.lr=1e300", "train.lr=1e-300", "train.cutmix=1e-300", "train.mixup=1e30", "seed=100000000000000000000"),
    *("prune.passes=1000000000", "data.workers=100000", "threads=1000000000", "train.clip_norm=1e39"),
    *("finetune.distill={temperature: 1e300}", "train.sparsity.lambda=1e39", "train.weight_decay=.inf"),
]


@pytest.mark.parametrize("override", EXTREMES)
def test_a_number_beyond_all_measure_is_refused(tmp_path, override: str) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD)
    config = load_recipe(tmp_path / "recipe.yaml")
    key = override.partition("=")[0].replace("{temperature", ".temperature")
    with pytest.raises(bnprune.ConfigError, match=f"command line: {key}.*: must be"):
        amend(config, [override])


# -- long trainings ---------------------------------------------------------------------------------------------------


def test_the_longest_training_is_charted_in_seconds() -> None:
    most = PipelineConfig.model_validate(
        {"model": {"name": "mlp"}, "data": {"name": "digits"}, "train": {"epochs": 100_000}}
    ).train
    assert most is not None
    started = time.perf_counter()
    planner = TravelSchedule(most, SparsityConfig(), 100, 10.0)
    assert planner.reach == pytest.approx(10 * most.lr * 100 * 100_000 / 2)
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize("schedule", ["cosine", "step", "one-cycle", "constant"])
def test_a_course_is_the_running_sum_of_its_steps(schedule: str) -> None:
    config = OptimisationConfig(epochs=10, schedule=schedule, warmup_epochs=1)
    planner = TravelSchedule(config, SparsityConfig(schedule="ramp"), 1700, 2.0)
    moved = [2.0 * learning_rate(config, step, 1700) * planner.factor(step) for step in range(17_000)]
    used = np.cumsum([0.0, *moved])
    for step in (0, 1, 16_383, 16_384, 16_385, 16_999):
        assert planner.used(step) == pytest.approx(used[step])
    assert planner.reach == pytest.approx(used[-1])


@pytest.mark.parametrize("warmup", [1e-300, 0.1, 0.75, 1.5])
def test_the_warmup_never_overshoots(warmup: float) -> None:
    config = OptimisationConfig(epochs=3, lr=0.5, warmup_epochs=warmup)
    rates = [learning_rate(config, step, 2) for step in range(6)]
    assert max(rates) <= 0.5


# -- plans ------------------------------------------------------------------------------------------------------------


def plan(**changes: Any) -> dict[str, Any]:
    """A plan of one cut, with changes to the cut or to the plan."""
    cut = {"size": 4, "keep": [0, 2], "at": ["0.weight:0"]}
    cut |= {key: changes.pop(key) for key in ("size", "keep", "at") if key in changes}
    model = {"name": "Net", "digest": "0"}
    return {"schema": "bnprune.plan/1", "model": model, "cuts": [cut], "attributes": {}} | changes


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 10**18, "keep": [0]},
        {"size": 10**400},
        {"size": 4.0},
        {"size": True, "keep": [0]},
        {"size": "4"},
        {"keep": [0.0, 2.0]},
        {"keep": [False, True]},
        {"keep": [-1, 2]},
        {"keep": [2, 2]},
        {"keep": [2, 0]},
        {"keep": [0, 10**9]},
        {"keep": {"0": 1}},
        {"keep": "02"},
        {"at": [3]},
        {"at": ["0.weight:²"]},
        {"at": ["0.weight:" + "1" * 5000]},
        {"at": ["0.weight"]},
        {"at": "0.weight:0"},
        {"model": {"name": 3, "digest": "0"}},
        {"model": {"name": "x" * 10**6, "digest": "0"}},
        {"attributes": {"0": {"out_channels": 2.0}}},
        {"attributes": {"0": {"out_channels": 10**400}}},
        {"attributes": [["0", 1]]},
        {"gates": [{"at": 3, "kind": "read", "stream": [0, 1], "keep": [0]}]},
        {"gates": [{"at": "0", "kind": [], "stream": [0, 1], "keep": [0]}]},
        {"gates": [{"at": "0", "kind": "read", "stream": [0, 1.5], "keep": [0]}]},
        {"gates": [{"at": "0", "kind": "read", "stream": [0, 1], "keep": [0]}] * 2},
        {"folds": [{"bias": 3, "into": "1"}]},
        {"folds": {"bias": "0.bias", "into": "1"}},
        {"requested": [["ratio", 0.5]]},
        {"requested": deep(2000)},
        {"realised": {"ratio": float("inf")}},
        {"realised": {"ratio": float("nan")}},
        {"refusals": [{"site": [], "reason": "", "fix": ""}]},
    ],
    ids=lambda value: quoted(value, 40),
)
def test_a_plan_with_a_part_of_the_wrong_kind_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(bnprune.CheckpointError, match="not a pruning plan") as caught:
        bnprune.PruningPlan.from_dict(plan(**changes))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, '{"schema": 1e999}'], ids=["deep", "digits", "infinite"])
def test_json_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(bnprune.CheckpointError, match="not a pruning plan"):
        bnprune.PruningPlan.from_json(text)


def test_the_plans_of_a_checkpoint_are_few() -> None:
    assert len(read_plans([plan()] * 3)) == 3
    for entries in ([plan()] * (MOST_PLANS + 1), {"0": plan()}, None):
        with pytest.raises(bnprune.CheckpointError, match="at most 32 pruning plans"):
            read_plans(entries)


# -- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    ["abc", [], [1] * 6, [1, 0, 16], [-1], [1e9, 1, 1], [10**9, 1, 1], [10**400], [10**4] * 3, [True, 3], None],
    ids=quoted,
)
def test_a_shape_that_is_none_or_too_large_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        require_shape(value)


def test_shapes_and_batches_that_fit_are_taken() -> None:
    assert require_shape([3, 224, 224]) == (3, 224, 224)
    require_batch(256, (3, 224, 224))
    with pytest.raises(bnprune.ConfigError, match=r"batches of at most 3566 \(got 1000000\)") as refused:
        require_batch(1_000_000, (3, 224, 224))
    assert refused.value.argument == "batch"
