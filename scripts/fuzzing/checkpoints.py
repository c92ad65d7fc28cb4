"""Checkpoints and plans."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fuzzing.cases import (
    CHECKPOINTS,
    Builder,
    Case,
    fifo,
    holding,
    loop,
    take,
    zero,
)
from fuzzing.values import (
    BIG,
    CODE,
    DEEP,
    ESCAPES,
    LONG_NUMBER,
    OUTSIDE,
    PLAIN,
    damaged,
    damaged_bytes,
    damaged_tensors,
    dumps,
    put,
    read_tensors,
    write_tensors,
)

# fmt: off
ON_FILE: dict[str, tuple[int, Callable[[str], tuple[str, ...]]]] = {
    "inspect": (16, lambda s: ("inspect", s)),
    "prune": (12, lambda s: ("prune", s, "--ratio", "0.3", "--out", "out.safetensors")),
    "dry": (4, lambda s: ("prune", s, "--dry-run")), "evaluate": (7, lambda s: ("evaluate", s)),
    "evaluate-here": (7, lambda s: ("evaluate", s, "--config", "recipe.yaml")),
    "export": (5, lambda s: ("export", s, "--format", "state-dict", "--out", "out.safetensors")),
    "sweep": (3, lambda s: ("sweep", s, "--at", "0.5")),
    "benchmark": (4, lambda s: ("benchmark", s, "--rounds", "1", "--batch", "2")),
    "second": (3, lambda s: ("benchmark", "good.safetensors", s, "--rounds", "1", "--batch", "2")),
    "dense": (2, lambda s: ("benchmark", s, "--dense", "--rounds", "1", "--batch", "2")),
    "finetune": (3, lambda s: ("finetune", s, "finetune.epochs=1", "--out", "tuned")),
    "finetune-here": (3, lambda s: ("finetune", s, "recipe.yaml", "finetune.epochs=1", "--out", "tuned")),
    "teacher": (2, lambda s: ("finetune", "good.safetensors", "finetune.epochs=1", "--teacher", s, "--out", "tuned")),
    "beside": (2, lambda _: ("finetune", "good.safetensors", *DISTILLED, "--out", "tuned")),
}
# fmt: on
DISTILLED = ("finetune.epochs=1", "finetune.distill=true")


def on_file(rng: random.Random, base: Path, source: str, verb: str = "") -> Case:
    """Return a case that reads a checkpoint."""
    take(base, "recipe.yaml", "canary.py")
    shutil.copy(base / "run/checkpoints/finetune.safetensors", "good.safetensors")
    verb = verb or rng.choices(["load", "load into", *ON_FILE], [24, 6, *(weight for weight, _ in ON_FILE.values())])[0]
    if verb.startswith("load"):
        return Case((source,), call=verb)
    if verb == "beside":
        Path(source).rename("train.safetensors")
    return Case((*ON_FILE[verb][1](source), *(["--json"] if rng.random() < 0.3 else [])))


def forge(base: Path, change: Callable[[Any], Any], name: str = CHECKPOINTS[0], filler: str = "") -> None:
    """Write bad.safetensors: a good checkpoint with other metadata."""
    header, data = read_tensors(base / f"{name}.safetensors")
    metadata = json.loads(header["__metadata__"]["bnprune"])
    text = dumps(change(metadata), depth=30_000).replace('"@@filler@@"', filler)
    write_tensors(Path("bad.safetensors"), {**header, "__metadata__": {"bnprune": text}}, data)


def attack(changes: Mapping[str, Any], verb: str, rng: random.Random, base: Path, name: str = CHECKPOINTS[0]) -> Case:
    """Read a checkpoint with other metadata."""
    forge(base, partial(put, changes), name)
    return on_file(rng, base, "bad.safetensors", verb)


_TOUCH = {"factory": "os:system", "kwargs": {"command": "touch owned"}}
# fmt: off
_CODE_ATTACKS: tuple[tuple[Mapping[str, Any], str], ...] = (
    ({"model": {"name": "vgg11", **_TOUCH}}, "load " + " ".join(ON_FILE)),
    ({"model": {"name": "mlp", "factory": "canary:Network"}}, "load inspect finetune-here"),
    ({"model": {"factory": "canary:Network"}}, "load inspect evaluate-here"),
    ({"config.data": _TOUCH}, "evaluate export sweep finetune"),
    ({"config.data": {"factory": "canary:touch"}}, "evaluate export sweep finetune"),
    ({"config.data": {"name": "mnist", "root": f"{OUTSIDE}/data", "download": True}}, "evaluate export sweep finetune"),
    ({"config.data": {"name": "imagefolder", "root": OUTSIDE}}, "evaluate export sweep finetune"),
    ({"config.model": {"name": "torchvision/resnet18", "pretrained": True}}, "load " + " ".join(ON_FILE)),
    ({"config.data.root": f"{OUTSIDE}/data"}, "evaluate finetune"),
    ({"config.finetune.distill": {"teacher": f"{OUTSIDE}/secret.safetensors"}}, "finetune evaluate"),
    ({"config.model.weights": f"{OUTSIDE}/secret.safetensors"}, "finetune evaluate load"),
    ({"config.model": {"factory": "canary:Network"}}, "finetune evaluate"),
    ({"config.task": {"factory": "canary:touch"}}, "finetune evaluate"),
    ({"config.export": {"formats": ["onnx"]}, "config.tensorboard": True}, "finetune"),
    ({"model": {"name": "torchvision/resnet18", "kwargs": {"weights": "DEFAULT"}}}, "load inspect"),
    ({"model": {"name": "torchvision/fcn_resnet50", "kwargs": {"weights_backbone": "DEFAULT"}}}, "load"),
    ({"model": {"name": "torchvision/vgg16", "kwargs": {"weights": "IMAGENET1K_FEATURES"}}}, "load"),
    ({"model": {"name": "timm/resnet18", "kwargs": {"pretrained": True}}}, "load inspect"),
    ({"model": {"name": "timm/hf-hub:someone/model"}}, "load inspect"),
    ({"model": {"name": "timm/hf_hub:someone/model"}}, "load"),
    ({"model": {"name": f"timm/local-dir:{OUTSIDE}"}}, "load inspect"),
    ({"model": {"name": "timm/resnet18.hf-hub:someone/model"}}, "load"),
    (
        {"model": {"name": "timm/resnet18", "kwargs": {"checkpoint_path": f"{OUTSIDE}/secret.safetensors"}}},
        "load inspect",
    ),
    (
        {"model": {"name": "timm/resnet18", "kwargs": {"pretrained_cfg": {"file": f"{OUTSIDE}/secret.safetensors"}}}},
        "load",
    ),
    ({"model": {"name": "timm/resnet18", "kwargs": {"norm_layer": "canary:touch", "act_layer": "canary"}}}, "load"),
)
_BOMBS: tuple[tuple[Mapping[str, Any], str], ...] = (
    ({"model.kwargs.num_classes": 6_000_000}, "load inspect"), ({"model.kwargs.hidden": [10**9]}, "load"),
    ({"model.kwargs.hidden": [1] * 200_000}, "load"), ({"model": {"name": "vgg19", "kwargs": {"width": 1e6}}}, "load"),
    ({"model": {"name": "resnet110", "kwargs": {"width": 2000}}}, "load inspect"),
    ({"model": {"name": "resnet110", "kwargs": {"depth": 6 * 10**7 + 2}}}, "load"),
    ({"model": {"name": "torchvision/vit_h_14", "kwargs": {"image_size": 14 * 1000}}}, "load"),
    ({"model": {"name": "torchvision/mobilenet_v2", "kwargs": {"width_mult": 300}}}, "load"),
    ({"model": {"name": "timm/resnet18", "kwargs": {"layers": [10**6, 1, 1, 1]}}}, "load"),
    ({"model": {"name": "timm/vit_tiny_patch16_224", "kwargs": {"depth": 10**6}}}, "load inspect"),
    ({"model": {"name": "torchvision/densenet121", "kwargs": {"block_config": [10**5] * 4}}}, "load"),
    ({"model": {"name": "torchvision/mobilenet_v2", "kwargs": {"inverted_residual_setting": [[1, 8, 10**6, 1]]}}},
     "load"),
    ({"model": {"name": "torchvision/resnet18", "kwargs": {"width_per_group": 10**5, "groups": 10**5}}}, "load"),
    ({"input": [10**9, 1, 1]}, "inspect prune"), ({"input": [1, 30_000, 30_000]}, "inspect prune benchmark"),
    ({"input": [1] * 5000}, "inspect"), ({"input": [10**30]}, "inspect load prune benchmark"),
    ({"model.name": 5}, "load inspect"), ({"model.name": ["mlp"]}, "load"), ({"model.kwargs.hidden": DEEP}, "load"),
    ({"metrics": DEEP}, "load inspect"), ({"metrics": {"top1": LONG_NUMBER}}, "load inspect"),
    ({"stage": ESCAPES, "model.name": ESCAPES}, "load inspect"), ({"model.name": "x" * 100_000}, "load inspect"),
    ({"model.kwargs": {"x" * 100_000: ESCAPES}}, "load inspect"),
    ({"config.data.name": ESCAPES + "x" * 100_000}, "evaluate"),
    ({"config.train.epochs": 10**12, "config.train.sparsity": {"lambda": "auto"}}, "evaluate inspect"),
    ({"config.data.batch_size": 10**20}, "evaluate sweep finetune"),
    ({"config.data.limit": 1, "config.threads": 10**9}, "evaluate finetune"),
    ({"config.device": "privateuseone"}, "evaluate finetune"),
    ({"aliases": {"layers.1.weight": "layers.1.bias"}}, "load"),
    ({"schema": "bnprune.checkpoint/" + "9" * 10_000}, "load"),
)
# fmt: on
_PLAN_BOMBS: tuple[Mapping[str, Any], ...] = (
    {"plans.0.cuts.0.size": 10**9},
    {"plans.0.cuts.0.size": 10**15},
    {"plans.0.cuts.0.at": ["layers.1.weight:0"] * 100_000},
    {"plans.0.attributes": {"": {"forward": 5, "__class__": 6, "training": 7, "_modules": 8}}},
    {"plans.0.attributes": {"layers": {"__dict__": 3}}},
    {"plans.0.attributes.layers.1": {"num_features": 10**30}},
    {"plans.0.model.name": ESCAPES + "x" * 100_000},
    {"plans.0.refusals": [{"site": ESCAPES, "reason": "x" * 10**6, "fix": ""}]},
    {"plans": [[]] * 10},
    {"plans": {"0": {}}},
    {"plans.0.gates": [{"site": "layers.2", "kind": "read", "stream": [10**9], "own": [0]}]},
)


def many_plans(rng: random.Random, base: Path) -> Case:
    def change(data: Any) -> Any:
        plan = {**data["plans"][0], "cuts": [], "attributes": {}, "gates": [], "folds": [], "refusals": []}
        return {**data, "plans": [plan] * 3000}

    forge(base, change, "vgg")
    return on_file(rng, base, "bad.safetensors", "load")


def much_metadata(verb: str, size: int, rng: random.Random, base: Path) -> Case:
    forge(base, partial(put, {"metrics": {"a": "@@filler@@"}}), filler="[" + "[]," * (size // 3) + "[]]")
    return on_file(rng, base, "bad.safetensors", verb)


def odd_header(text: bytes, length: int | None, rng: random.Random, base: Path) -> Case:
    write_tensors(Path("bad.safetensors"), text, b"\x00" * 64, length)
    return on_file(rng, base, "bad.safetensors", "load")


def odd_file(make: Callable[[Path], None], verb: str, rng: random.Random, base: Path) -> Case:
    make(Path("bad.safetensors"))
    return on_file(rng, base, "bad.safetensors", verb)


_EXECUTING: list[Builder] = [
    partial(attack, changes, verb) for changes, verbs in _CODE_ATTACKS for verb in verbs.split()
]
KNOWN_CHECKPOINTS: list[Builder] = [
    *_EXECUTING,
    *(partial(attack, changes, verb) for changes, verbs in _BOMBS for verb in verbs.split()),
    *(partial(attack, changes, "load", name=CHECKPOINTS[1]) for changes in _PLAN_BOMBS),
    *(many_plans, partial(much_metadata, "load", 90_000_000), partial(much_metadata, "inspect", 15_000_000)),
    *(partial(odd_header, text, length) for text, length in ((b"{}", 2**63), (b"[" * 10_000, None), (b"{}", 0))),
    *(partial(odd_file, make, "inspect") for make in (fifo, zero, loop)),
]


ATTACKS = len(_EXECUTING)
"""How many of them would execute something: they come first."""


def draw_checkpoint(rng: random.Random, base: Path) -> Case:
    """Damage the metadata, the plan, the header, the tensors, or the bytes of a checkpoint."""
    name = rng.choice(CHECKPOINTS)
    path = Path("bad.safetensors")
    what = rng.choices(("metadata", "config", "model", "plan", "header", "tensors", "bytes"), (5, 4, 4, 4, 2, 2, 3))[0]
    pool = (*PLAIN, *BIG, *CODE, *CODE)
    header, data = read_tensors(base / f"{name}.safetensors")
    if what == "header":
        write_tensors(path, damaged(rng, header, PLAIN), data, rng.choice((None, None, None, 0, 8, 2**63, 10**8)))
    elif what == "tensors":
        write_tensors(path, *damaged_tensors(rng, header, data))
    elif what == "bytes":
        path.write_bytes(damaged_bytes(rng, (base / f"{name}.safetensors").read_bytes()))
    else:
        forge(base, partial(_damaged_at, rng, what, pool), name)
    return on_file(rng, base, path.name)


def _damaged_at(rng: random.Random, what: str, pool: Sequence[Any], data: Any) -> Any:
    key = {"plan": "plans"}.get(what, what)
    if not data.get(key):
        return damaged(rng, data, pool)
    return {**data, key: damaged(rng, data[key], PLAIN if what == "plan" else pool)}


def on_plan(rng: random.Random, base: Path, call: bool | None = None) -> Case:
    shutil.copy(base / "run/checkpoints/train.safetensors", "dense.safetensors")
    if rng.random() < 0.3 if call is None else call:
        return Case(("plan.json", "dense.safetensors"), call="plan")
    rest = rng.choice((("--dry-run",), ("--out", "out.safetensors"), ("--out", "out.safetensors", "--json")))
    return Case(("prune", "dense.safetensors", "--plan", "plan.json", *rest))


def known_plan(change: Callable[[Any], Any], call: bool, rng: random.Random, base: Path) -> Case:
    plan = change(json.loads((base / "run/plan.json").read_text()))
    Path("plan.json").write_text(dumps(plan), errors="surrogatepass")
    return on_plan(rng, base, call)


def odd_plan(make: Callable[[Path], None], rng: random.Random, base: Path) -> Case:
    make(Path("plan.json"))
    return on_plan(rng, base, call=False)


_PLANS: tuple[Mapping[str, Any], ...] = tuple(
    {path.removeprefix("plans.0."): value for path, value in changes.items()}
    for changes in _PLAN_BOMBS
    if not any(path == "plans" for path in changes)
)
KNOWN_PLANS: list[Builder] = [
    *(partial(known_plan, partial(put, changes), call) for changes in _PLANS for call in (False, True)),
    *(partial(known_plan, lambda _, value=value: value, False) for value in (DEEP, LONG_NUMBER, None, [], "x")),
    *(partial(odd_plan, make) for make in (fifo, zero, loop, Path.mkdir, holding(b"\xff\xfe{}"), holding(b""))),
    partial(odd_plan, holding(b'{"schema": "bnprune.plan/1", "a": [' + b"[]," * 20_000_000 + b"[]]}")),
]


def draw_plan(rng: random.Random, base: Path) -> Case:
    content = (base / "run/plan.json").read_text()
    if rng.random() < 0.2:
        Path("plan.json").write_bytes(damaged_bytes(rng, content.encode()))
    else:
        text = dumps(damaged(rng, json.loads(content), (*PLAIN, *BIG)))
        Path("plan.json").write_text(text, errors="surrogatepass")
    return on_plan(rng, base)
