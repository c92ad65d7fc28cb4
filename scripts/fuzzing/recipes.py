"""Recipes, overrides and command lines."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fuzzing.cases import (
    BOUNDED,
    MODEL,
    RECIPE,
    Builder,
    Case,
    fifo,
    holding,
    loop,
    saying,
    take,
    zero,
)
from fuzzing.values import (
    ESCAPES,
    KEYS,
    LONG_NUMBER,
    PLAIN,
    damaged,
    damaged_text,
    dumps,
    put,
)


def on_recipe(rng: random.Random, base: Path, verb: str = "") -> Case:
    take(base, "canary.py")
    verb = verb or rng.choices(("validate", "run", "evaluate"), (7, 2, 1))[0]
    json_wanted = ("--json",) if rng.random() < 0.3 else ()
    if verb == "run":
        return Case(("run", "bad.yaml", *BOUNDED, "--out", "out", *json_wanted))
    if verb == "evaluate":
        shutil.copy(base / "run/checkpoints/train.safetensors", "dense.safetensors")
        return Case(("evaluate", "dense.safetensors", "--config", "bad.yaml", *json_wanted))
    return Case(("validate", "bad.yaml", *json_wanted, *(("--print",) if rng.random() < 0.2 else ())))


def known_recipe(make: Callable[[Path], None], verb: str, rng: random.Random, base: Path) -> Case:
    make(Path("bad.yaml"))
    return on_recipe(rng, base, verb)


def recipe_with(changes: Mapping[str, Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(dumps(put(changes, json.loads(json.dumps(RECIPE))), depth=5000), errors="surrogatepass")

    return write


ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
# fmt: off
_NUMBERS: tuple[Mapping[str, Any], ...] = (
    {"train.epochs": 10**12, "train.sparsity": {"lambda": "auto"}},
    {"train.epochs": 10**12, "train.sparsity": {"penalty": "polarization", "lambda": "auto", "travel": 5}},
    {"train.epochs": LONG_NUMBER}, {"data.batch_size": 10**20}, {"data.batch_size": LONG_NUMBER},
    {"data.limit": 10**20}, {"data.image_size": 10**20}, {"data.workers": 10**20}, {"seed": 2**70},
    {"seed": LONG_NUMBER}, {"threads": 10**9}, {"threads": 2**63}, {"device": "privateuseone"}, {"device": "meta"},
    {"device": ESCAPES}, {"model.gamma_init": 1e300}, {"model.gamma_init": 1e-300}, {"train.lr": 1e300},
    {"train.cutmix": 1e-300}, {"train.mixup": 1e300}, {"train.weight_decay": 1e300}, {"train.clip_norm": 1e-300},
    {"train.label_smoothing": float("nan")}, {"train.warmup_epochs": 0.999999}, {"prune": {"ratio": 1e-300}},
    {"prune": {"min_channels": 10**30}}, {"prune": {"round_to": 10**30}}, {"prune": {"latency_ms": 1e300}},
    {"prune": {"passes": 10**9}}, {"prune": {"layer_ratios": {ESCAPES: 0.5}}},
    {"prune": {"exclude": ["[" * 1000, ESCAPES]}}, {"finetune.distill": {"temperature": 1e300}},
    {"finetune.distill": {"temperature": 1e-300}},
)
_YAML: tuple[str, ...] = (
    ALIASES, ALIASES + "model: *a9\n",
    "model: {name: mlp, kwargs: {a: " + "".join(f"&b{n} [" for n in range(9)) + "]" * 9 + "}}",
    "model: &a {name: mlp, kwargs: *a}\ndata: {name: digits}\n", "&a [*a]", "&a {b: *a}", "<<: &a {<<: *a}\n",
    "model: " + "[" * 5000, "model: " + "[" * 5000 + "]" * 5000, "model: " + "{a: " * 3000 + "}" * 3000, "- " * 5000,
    "? " * 5000, "a: " + "9" * 5000, "a: 0x" + "f" * 100_000, "a: " + ":".join(["59"] * 20_000),
    *(f"model: !!python/object/apply:{name} ['touch owned']" for name in ("os.system", "subprocess.check_output")),
    "model: !!python/object/new:os.system ['touch owned']", "!!python/module:canary",
    "model: !!python/name:canary.touch", "model: !!binary " + "A" * 100_000,
    *(
        "{model: x, model: y}", "{[1]: 2}", "{{a: 1}: 2}", "? !!set {a}\n: 1", "\x00", "\ufeffmodel: x",
        "--- a\n--- b\n", "&a",
    ),
    "a: 'x" + "x" * 2_000_000 + "'", "\n".join(f"key{n}: {n}" for n in range(100_000)), ESCAPES,
    f"model: {{name: '{'x' * 100_000}'}}",
    'model: {name: "\\e]0;owned\\a\\e[31m", kwargs: {"\\e[2J": 1}}\n"\\e[31m": 1',
)
# fmt: on
KNOWN_RECIPES: list[Builder] = [
    *(partial(known_recipe, recipe_with(changes), "validate") for changes in _NUMBERS),
    *(partial(known_recipe, recipe_with(changes), "run") for changes in _NUMBERS[7:24] + _NUMBERS[-2:]),
    *(partial(known_recipe, saying(text), "validate") for text in _YAML),
    *(partial(known_recipe, make, "validate") for make in (fifo, zero, loop, Path.mkdir, holding(b"\xff\xfe\x00"))),
]


def draw_recipe(rng: random.Random, base: Path) -> Case:
    """Damage a recipe. It is one that the user names, so that nothing in it names code, downloads, or large sizes."""
    text = dumps(RECIPE) if rng.random() < 0.3 else _as_block(RECIPE)
    if rng.random() < 0.4:
        text = damaged_text(rng, text)
    else:
        text = dumps(damaged(rng, complete(), PLAIN, _recipe_keys()), depth=2000)
    Path("bad.yaml").write_text(text, errors="surrogatepass")
    return on_recipe(rng, base)


def complete() -> dict[str, Any]:
    """Return a recipe with every key that has a default."""
    from bnprune.config.recipe import as_data, check

    return as_data(check(RECIPE, {}))


def _recipe_keys() -> tuple[str, ...]:
    named = ("factory", "download", "root", "weights", "pretrained", "checkpoint_path", "teacher")
    found = [key for key in KEYS if key not in named]
    sections = [section for section in complete().values() if isinstance(section, dict)]
    return (*found, *(key for section in sections for key in section if key not in named))


def _as_block(data: Any, indent: str = "") -> str:
    lines = []
    for key, value in data.items():
        lines.append(f"{indent}{key}:\n{_as_block(value, indent + '  ')}" if isinstance(value, dict) and value else "")
        lines[-1] = lines[-1] or f"{indent}{key}: {json.dumps(value)}\n"
    return "".join(lines)


def draw_override(rng: random.Random, base: Path) -> Case:
    keys = _recipe_keys()
    sections = (
        "",
        "",
        "train.",
        "prune.",
        "finetune.",
        "data.",
        "model.",
        "model.kwargs.",
        "train.sparsity.",
        "export.",
    )
    words = []
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        value = dumps(rng.choice(PLAIN), depth=1000) if rng.random() < 0.7 else damaged_text(rng, "0.1")
        words.append(_argument(f"{rng.choice(sections)}{rng.choice(keys)}={value}"))
    return on_override(rng, base, words)


def on_override(rng: random.Random, base: Path, words: Sequence[str], verb: str = "") -> Case:
    take(base, "recipe.yaml")
    verb = verb or rng.choices(("validate", "run", "evaluate", "amend"), (6, 2, 1, 2))[0]
    if verb == "run":
        return Case(("run", "recipe.yaml", *words, *BOUNDED, "--out", "out"))
    if verb == "validate":
        return Case(("validate", "recipe.yaml", *words))
    shutil.copy(base / "run/checkpoints/train.safetensors", "dense.safetensors")
    config = ("--config", "recipe.yaml") if verb == "evaluate" else ()
    return Case(("evaluate", "dense.safetensors", *config, *words))


def _argument(text: str) -> str:
    """Return text as it can be handed to a program."""
    text = text.replace("\x00", "").encode("utf-8", "replace")[:100_000].decode("utf-8", "ignore")
    return text if not text.startswith("-") else "x" + text


# fmt: off
KNOWN_OVERRIDES: list[Builder] = [
    partial(on_override, words=[word], verb="validate")
    for word in (
        *("train.epochs=1000000000000", "data.batch_size=1e20", "data.batch_size=100000000000000000000", "a=&a [*a]"),
        *(
            "model=[", "=", "=1", ".=1", "a..b=1", "model.name.x=1", "train", "train.lr=&a {a: *a}",
            "train.lr=" + "[" * 5000,
        ),
        *("train.lr=1e300", "train.cutmix=1e-300", "model.gamma_init=1e300", "device=privateuseone", "device=cuda:99"),
        *("train.lr=!!python/object/apply:os.system ['touch owned']", "train.lr=" + "9" * 5000, f"train.lr={ESCAPES}"),
        *(f"{ESCAPES}=1", "x" * 50_000 + "=1", "a." * 5000 + "b=1", "<<=1", "<<={a: 1}", "seed=-1", "seed=1e400"),
    )
]
# fmt: on


# fmt: off
LINES: tuple[tuple[str, ...], ...] = (
    *(
        ("inspect", "slim.safetensors"), ("inspect", "run", "--json"), ("evaluate", "run"), ("doctor",),
        ("init", "--list"),
    ),
    ("inspect", "--model", "mlp", "--model-arg", "image_size=16", "--input", "1,16,16", "--exclude", "layers.*"),
    ("prune", "dense.safetensors", "--ratio", "0.5", "--out", "out.safetensors"),
    (
        "prune", "dense.safetensors", "--macs", "0.5", "--min-channels", "2", "--round-to", "2", "--cap", "0.9",
        "--dry-run",
    ),
    (
        "prune", "dense.safetensors", "--params", "0.5", "--criterion", "l1", "--coupling", "gates", "--dry-run",
        "--json",
    ),
    ("prune", "--model", "vgg11", "--model-arg", "width=0.03", "--input", "3,16,16", "--out", "out.safetensors"),
    ("prune", "run", "--plan", "run/plan.json", "--out", "out.safetensors", "--force"),
    ("evaluate", "slim.safetensors", "--config", "recipe.yaml", "data.batch_size=7", "--json"),
    ("evaluate", "--model", "mlp", "--model-arg", "image_size=16", "--config", "recipe.yaml"),
    ("sweep", "dense.safetensors", "--config", "recipe.yaml", "--at", "0.3,0.6", "--by", "ratio", "--tolerance", "0.1"),
    ("benchmark", "dense.safetensors", "slim.safetensors", "--rounds", "1", "--batch", "3", "--threads", "1"),
    ("benchmark", "slim.safetensors", "--dense", "--dtype", "bfloat16", "--device", "cpu", "--rounds", "1", "--json"),
    ("export", "slim.safetensors", "--format", "state-dict", "--out", "out.safetensors", "--fold-bn", "--batch", "1"),
    (
        "export", "slim.safetensors", "--format", "state-dict", "--no-verify", "--input", "1,16,16", "--config",
        "recipe.yaml",
    ),
    ("report", "run", "--out", "page.html", "--force"), ("report", "run", "run", "--json"),
    ("validate", "recipe.yaml", "train.lr=0.1", "--print"), ("run", "recipe.yaml", "--out", "out", "--json"),
    ("train", "recipe.yaml", "--out", "out", "--force"),
    ("finetune", "slim.safetensors", "recipe.yaml", "--teacher", "dense.safetensors", "--out", "out"),
    ("run", "recipe.yaml", "--out", "run", "--resume"), ("init", "digits.yaml", "--out", "new.yaml", "--force"),
)
WORDS = (
    *(
        "", " ", "-", "--", "-1", "0", "nan", "inf", "-inf", "1e308", "1e-308", "9" * 400, "²", "²,16,16", "١,١٦,١٦",
        "0,0,0",
    ),
    *("1,99999999,99999999", "1,16", "1,16,16,16", "1,,16", ",", "16x16", "1e3,1,1", "9" * 30, "auto", "None", "true"),
    *(
        "x" * 241 + ".safetensors", "x" * 300, "\udcff.safetensors", "\udcff", "absent/dir/out.safetensors", ".", "..",
        "~",
    ),
    *(
        "dense.safetensors", "slim.safetensors", "run", "recipe.yaml", "run/checkpoints/train.safetensors",
        "run/plan.json",
    ),
    *(
        "fifo", "zero", "loop", "link.safetensors", "empty", "folder", "\x1b[31m.safetensors", "a\nb", "é.safetensors",
        "out/",
    ),
    *(
        "{}", "[1,2", "a=b", "=", "train.lr=", "--json", "--force", "--out", "--help", "--debug", "--quiet", "-v",
        "--resume",
    ),
    *(
        "model.gamma_init=1e300", "train.lr=1e300", "train.cutmix=1e-300", "device=privateuseone", "device=meta",
        "threads=0",
    ),
    *(
        "cuda", "cuda:99", "privateuseone", "meta", "mps", "float16", "onnx", "pt3", "gates", "layers.*", "[", "**",
        "x,y,z",
    ),
    *(
        "mlp", "vgg11", "vgg", "torchvision/nothing", "timm/nothing", "timm/", "torchvision/", "/", "os:nothing", "a:b",
        ":", "a:",
    ),
    *(
        "hidden=[0]", "hidden=x", "hidden=[-1]", "num_classes=0", "image_size=-1", "width=nan", "width=0",
        "in_channels=1e9",
    ),
)
# fmt: on


def on_line(line: Sequence[str], base: Path) -> Case:
    """Run a command line beside good files."""
    take(base, "run", "recipe.yaml", "canary.py")
    shutil.copy("run/checkpoints/train.safetensors", "dense.safetensors")
    shutil.copy("run/checkpoints/finetune.safetensors", "slim.safetensors")
    fifo(Path("fifo"))
    zero(Path("zero"))
    loop(Path("loop"))
    Path("link.safetensors").symlink_to("slim.safetensors")
    Path("empty").touch()
    Path("folder").mkdir()
    if line[:1] == ("benchmark",) and "--rounds" not in line:
        line = (*line, "--rounds", "1")
    if line[:1] in (("run",), ("train",)) and "--resume" not in line:
        line = (*line, *BOUNDED)
    overwritten = {word.removesuffix("/") for flag, word in itertools.pairwise(line) if flag == "--out"}
    overwritten |= {"run/report.html"} if line[:1] == ("report",) else set()  # made anew from the rest of the run
    free = "--force" in line or "--resume" in line or line[:1] == ("report",)
    return Case(
        tuple(line), changes=tuple(sorted(overwritten - {"dense.safetensors", "slim.safetensors"})) if free else ()
    )


def known_line(line: Sequence[str], _: random.Random, base: Path) -> Case:
    return on_line(tuple(line), base)


def known_stdout(line: Sequence[str], stdout: str, _: random.Random, base: Path) -> Case:
    return replace(on_line(tuple(line), base), stdout=stdout)


_INSPECT = ("inspect", "--model", "mlp", "--model-arg", "image_size=16", "--input")
# fmt: off
KNOWN_LINES: list[Builder] = [
    partial(known_line, line)
    for line in (
        *LINES,
        *(
            (*_INSPECT, word)
            for word in ("²,16,16", "1,99999999,99999999", "1,16,16", "0,1,1", "1" * 400 + ",1,1", "1")
        ),
        *(("prune", word, "--out", word, "--force") for word in ("dense.safetensors", "link.safetensors")),
        *(
            ("prune", "run", "--out", word, "--force")
            for word in ("run/checkpoints/train.safetensors", "fifo", "zero", "loop")
        ),
        *(
            ("prune", "dense.safetensors", "--out", word, "--force")
            for word in ("fifo", "zero", "link.safetensors", "folder")
        ),
        *(
            ("prune", "dense.safetensors", "--out", word)
            for word in ("x" * 240 + ".safetensors", "\udcff.safetensors", "")
        ),
        ("export", "slim.safetensors", "--format", "state-dict", "--out", "slim.safetensors", "--force"),
        ("export", "link.safetensors", "--format", "state-dict", "--out", "slim.safetensors", "--force"),
        *(("report", "run", "--out", word, "--force") for word in ("fifo", "zero", "/dev/null", "run/result.json", "")),
        *((verb, "zero") for verb in ("validate", "run", "inspect", "prune", "report")),
        *((verb, "fifo") for verb in ("validate", "run", "inspect", "prune", "report")),
        *(("prune", "dense.safetensors", "--plan", word, "--dry-run") for word in ("zero", "fifo", "folder", "empty")),
        *(
            ("inspect", *MODEL, "--input", "3,8,8", "--weights", word)
            for word in ("zero", "fifo", "folder", "empty", "loop")
        ),
        *(("benchmark", "slim.safetensors", "--batch", word, "--rounds", "1") for word in ("99999999999", "9" * 30)),
        *(("run", "recipe.yaml", "--out", word, "--force") for word in ("fifo", "dense.safetensors", "zero", "loop")),
        *((word,) for word in ("", "x", "--x", "-x", "\udcff", ESCAPES, "x" * 5000, "--json", "Run", "runs")),
    )
]
# fmt: on
STDOUTS = ("full", "unread", "closed")
KNOWN_LINES += [partial(known_stdout, line, stdout) for line in LINES[:8] for stdout in STDOUTS]


def draw_line(rng: random.Random, base: Path) -> Case:
    words = list(rng.choice(LINES))
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(words))
        change = rng.randrange(6)
        if change < 2:
            words[at] = rng.choice(WORDS)
        elif change == 2:
            words.insert(at + 1, rng.choice(WORDS))
        elif change == 3 and len(words) > 1:
            del words[at]
        elif change == 4:
            words[at] = _misspelt(rng, words[at])
        else:
            words.append(rng.choice([word for line in LINES for word in line]))
    return replace(on_line(tuple(words), base), stdout=rng.choice(STDOUTS) if rng.random() < 0.05 else "")


def _misspelt(rng: random.Random, word: str) -> str:
    at = rng.randrange(len(word) + 1)
    return word[:at] + rng.choice((*string.ascii_lowercase, "-", "=", "")) + word[at + rng.randrange(2) :]
