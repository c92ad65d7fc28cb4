"""Run directories and image folders."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from fuzzing.cases import (
    BOUNDED,
    MODEL,
    Builder,
    Case,
    fifo,
    holding,
    loop,
    saying,
    take,
    zero,
)
from fuzzing.checkpoints import DISTILLED
from fuzzing.recipes import ALIASES, complete, recipe_with
from fuzzing.values import (
    CODE,
    DEEP,
    ESCAPES,
    OUTSIDE,
    PLAIN,
    damaged,
    damaged_bytes,
    dumps,
    put,
)

_RUN_FILES = ("result.json", "metrics.jsonl", "env.json", "config.yaml", "plan.json", "gamma.safetensors")
ON_RUN: tuple[tuple[int, tuple[str, ...]], ...] = (
    (10, ("report", "run", "--force", "--out", "report.html")),
    (3, ("report", "run", "good", "--out", "report.html")),
    (2, ("report", "run", "--json", "--out", "report.html")),
    (3, ("evaluate", "run")),
    (2, ("evaluate", "run", "--config", "recipe.yaml")),
    (2, ("inspect", "run")),
    (2, ("prune", "run", "--out", "out.safetensors")),
    (1, ("sweep", "run", "--at", "0.5")),
    (1, ("benchmark", "run", "--rounds", "1", "--batch", "2")),
    (1, ("export", "run", "--format", "state-dict", "--out", "out.safetensors")),
    (1, ("finetune", "run", "finetune.epochs=1", "--out", "tuned")),
    (1, ("finetune", "run", *DISTILLED, "--out", "tuned")),
)


def on_run(rng: random.Random, base: Path, change: Callable[[], None], verb: str = "") -> Case:
    take(base, "run", "recipe.yaml", "canary.py")
    shutil.copytree("run", "good")
    change()
    lines = [(weight, line) for weight, line in ON_RUN if line[0] == verb or not verb]
    return Case(rng.choices([line for _, line in lines], [weight for weight, _ in lines])[0])


def _json_file(name: str, change: Callable[[Any], Any]) -> None:
    path = Path("run", name)
    path.write_text(dumps(change(json.loads(path.read_text()))), errors="surrogatepass")


def _written(name: str, write: Callable[[Path], None]) -> None:
    Path("run", name).unlink()
    write(Path("run", name))


def known_run(change: Callable[[], None], verb: str, rng: random.Random, base: Path) -> Case:
    return on_run(rng, base, change, verb)


_SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
_RESULTS: tuple[Mapping[str, Any], ...] = (
    *(
        {f"stages.train.{key}": value}
        for key in ("top1", "seconds", "loss")
        for value in (1e308, float("inf"), "x", None)
    ),
    *({"stages.prune.macs": {"before": value, "after": 1}} for value in (0, -1, 10**400, 1e308, float("nan"))),
    *({"stages.prune.layers": value} for value in (DEEP, [], None, [{}], [{"name": _SCRIPT, "before": 8, "after": 4}])),
    *({"stages": value} for value in (DEEP, [], None, {ESCAPES: {}}, {_SCRIPT: {}}, {"train": None}, {"prune": 5})),
    *({"stages.prune.refusals": [{"site": _SCRIPT, "reason": _SCRIPT, "fix": ESCAPES}]}, {"schema": "x" * 10**5}),
    *({"metrics_bytes": -1}, {"stages.train.epochs": 10**30}),
)
_METRICS = (
    '{"stage": "train", "epoch": EPOCH, "lr": VALUE, "train": {"loss": VALUE, "top1": 0}, '
    '"validation": {"loss": 1, "top1": 1}}\n'
)


def _line(epoch: int = 1, value: str = "1") -> str:
    return _METRICS.replace("EPOCH", str(epoch)).replace("VALUE", value)


# fmt: off
_LINES = (
    *(_line(value=value) for value in ("1e308", "-1e308", "NaN", "Infinity", "null", '"x"', "[]", "9" * 400)),
    _line(value="9" * 5000),
    "[" * 100_000, "{}\n" * 3, "null\n", "x" * 100_000, "\x00", f'{{"stage": "{_SCRIPT}"}}\n', _line(10**18),
    "".join(_line(n) for n in range(100_000)),
)
# fmt: on
_DIRECTORY_DATA = (
    {"data": {"factory": "canary:touch"}},
    {"data": {"name": "mnist", "root": f"{OUTSIDE}/data", "download": True}},
    {"model": {"factory": "canary:Network"}},
    {"finetune.distill": {"teacher": f"{OUTSIDE}/secret.safetensors"}},
)
# fmt: off
KNOWN_RUNS: list[Builder] = [
    *(partial(known_run, partial(_json_file, "result.json", partial(put, changes)), "report") for changes in _RESULTS),
    *(partial(known_run, partial(_written, "metrics.jsonl", saying(text)), "report") for text in _LINES),
    *(
        partial(known_run, partial(_written, "config.yaml", recipe_with(changes)), verb)
        for changes in _DIRECTORY_DATA
        for verb in ("report", "evaluate", "finetune")
    ),
    *(
        partial(known_run, partial(_written, name, make), "report")
        for name in _RUN_FILES
        for make in (fifo, zero, Path.mkdir, holding(b"\xff"))
    ),
    partial(known_run, partial(_written, "config.yaml", saying(ALIASES)), "report"),
    partial(known_run, partial(_json_file, "env.json", partial(put, {"versions": {_SCRIPT: ESCAPES}})), "report"),
    partial(known_run, partial(_json_file, "plan.json", partial(put, {"cuts": DEEP})), "report"),
]
# fmt: on


def draw_run(rng: random.Random, base: Path) -> Case:
    name = rng.choices(_RUN_FILES, (5, 4, 1, 2, 1, 1))[0]

    def change() -> None:
        path = Path("run", name)
        if name == "gamma.safetensors" or rng.random() < 0.2:
            path.write_bytes(damaged_bytes(rng, path.read_bytes()))
        elif name == "metrics.jsonl":
            lines = path.read_text().splitlines()
            place = rng.randrange(len(lines))
            lines[place] = dumps(damaged(rng, json.loads(lines[place]), PLAIN))
            path.write_text("\n".join(lines) + "\n", errors="surrogatepass")
        elif name == "config.yaml":
            path.write_text(dumps(damaged(rng, complete(), (*PLAIN, *CODE)), depth=2000), errors="surrogatepass")
        else:
            _json_file(name, lambda data: damaged(rng, data, PLAIN))

    return on_run(rng, base, change)


def on_images(rng: random.Random, base: Path) -> Case:
    take(base, "folder.yaml")
    streamed = rng.random() < 0.4
    options = (f"data.in_memory={str(not streamed).lower()}", f"data.workers={rng.choice((0, 0, 1))}")
    verb = rng.choices(("evaluate", "validate", "run"), (6, 3, 2))[0]
    if verb == "evaluate":
        return Case(("evaluate", *MODEL, "--config", "folder.yaml", *options))
    return Case((verb, "folder.yaml", *options, *((*BOUNDED, "--out", "out") if verb == "run" else ())))


def known_image(name: str | bytes, write: Callable[[Path], None], rng: random.Random, base: Path) -> Case:
    take(base, "images")
    path = Path("images/train/a") / os.fsdecode(name)
    if path.exists():
        path.unlink()
    write(path)
    return on_images(rng, base)


def png(width: int, height: int, *, content: bool = True) -> bytes:
    """Return a PNG of one bit per pixel; without content, the header only."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    squeezed = zlib.compress(bytes((width + 7) // 8 + 1) * height, 1) if content else b""
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", squeezed) + chunk(b"IEND", b"")


def _png(width: int, height: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(png(width, height)) and None


def many_large(rng: random.Random, base: Path) -> Case:
    """As large as Pillow allows, several at a time."""
    take(base, "images")
    content = png(13_000, 13_000)
    for split in ("train", "test"):
        for path in Path("images", split).rglob("*.*"):
            path.with_suffix(".png").write_bytes(content)
    return on_images(rng, base)


def other_classes(split: str, change: str, rng: random.Random, base: Path) -> Case:
    """A class that is empty, missing, added or oddly named."""
    take(base, "images")
    folder = Path("images", split, "b")
    if change == "empty":
        for path in folder.iterdir():
            path.unlink()
    elif change == "gone":
        shutil.rmtree(folder)
    elif change == "more":
        Path("images", split, ESCAPES.replace("\x00", "")).mkdir()
    elif change == "single":
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    elif change == "all":
        for path in Path("images", split).rglob("*.*"):
            path.unlink()
    return on_images(rng, base)


_FLAT = holding(png(1, 2**31 - 1, content=False))
_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(owned) (w) file closefile\nshowpage\n%%EOF\n"
# fmt: off
_PICTURES: tuple[tuple[str | bytes, Callable[[Path], None]], ...] = (
    *(("x.png", make) for make in (holding(_EPS), fifo, zero, loop, Path.mkdir, holding(b""), holding(b"\x89PNG\r\n"))),
    *(
        ("0.jpg", make)
        for make in (holding(_EPS), fifo, _png(30_000, 30_000), _png(13_000, 13_000), _FLAT)
    ),
    *(("x.png", _png(*size)) for size in ((30_000, 30_000), (0, 0), (1, 65_000), (65_000, 1))),
    ("x.png", holding(png(30_000, 30_000, content=False))), ("x.ppm", holding(b"P6 30000 30000 255\n")),
    ("x.ppm", holding(b"P3 9 9 255\n" + b"9" * 100_000)),
    ("x.gif", holding(b"GIF89a\xff\xff\xff\xff\x80\x00\x00" + bytes(3000))),
    ("x.tif", holding(b"II*\x00\x08\x00\x00\x00\x02\x00" + b"\x00\x01\x04\x00\x01\x00\x00\x00\xff\xff\xff\x7f" * 2)),
    ("x.bmp", holding(b"BM" + bytes(8) + struct.pack("<IIiiHHI", 54, 40, 2**30, 2**30, 1, 24, 0) + bytes(24))),
    ("x.webp", holding(b"RIFF\xff\xff\xff\x7fWEBPVP8X\x0a\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff")),
    *(
        (name, holding(b"no image"))
        for name in ("x\x1b[31m.png", "a\nb.png", b"\xff\xfe.png", "x" * 240 + ".png", " .png")
    ),
    *((name, _png(8, 8)) for name in ("y\x1b[31m.png", "a\rb.png", b"\xff.png", ".png", "-.png")),
)
# fmt: on
KNOWN_IMAGES: list[Builder] = [
    *(partial(known_image, name, write) for name, write in _PICTURES for _ in range(2)),
    many_large,
    *(
        partial(other_classes, split, change)
        for split in ("train", "test")
        for change in ("empty", "gone", "more", "single", "all")
    ),
]


def draw_images(rng: random.Random, base: Path) -> Case:
    take(base, "images")
    paths = sorted(Path("images").rglob("*.*"))
    for path in rng.sample(paths, rng.choice((1, 1, 2, 8))):
        change = rng.randrange(8)
        if change < 5:
            path.write_bytes(damaged_bytes(rng, path.read_bytes()))
        elif change == 5:
            mode = rng.choice(("L", "P", "CMYK", "1", "I;16", "RGBA", "F", "LA", "YCbCr"))
            form = "TIFF" if mode in ("F", "CMYK", "YCbCr") else "PNG"
            Image.new(mode, (rng.randrange(1, 40), rng.randrange(1, 40))).save(path, form)
        elif change == 6:
            path.rename(path.with_name(rng.choice(("x.tif", "x.webp", "x.bmp", "é.gif", "x.PNG", "x.txt", "x.png"))))
        else:
            path.unlink()
    return on_images(rng, base)
