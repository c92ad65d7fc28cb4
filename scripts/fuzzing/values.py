"""Nasty values, and ways to damage data, text, bytes and safetensors files, drawn from a given generator."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

DEEP, LONG_NUMBER = "@@deep@@", "@@number@@"
"""Stand for what the writers of JSON and YAML refuse to write: see `dumps`."""
ESCAPES = "\x1b]0;owned\x07\x1b[31mred\x9b31m\r"
OUTSIDE = "../outside"
"""A folder beside the one in which a case works: nothing in it may be opened."""

PLAIN: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 0.5, -0.0, 1e308, -1e308, 1e-308, 1e300, float("nan"), float("inf")),
    *(2**40, 2**53, 2**63, 2**64, -(2**63) - 1, 1e20, LONG_NUMBER, DEEP),
    *("", "a", "0", "1e9", "nan", "auto", "\x00", ESCAPES, "\u202e", "x" * 100_000, "é" * 300, "../../x", "/", "."),
    *("features.0", "layers.1", "layers.1.weight:0", "layers.1.weight:-1", "layers.1.weight:9", "__class__", "\ud800"),
    *([], {}, [[]], [None], [{}], {"": None}, [0], [-1], [1, 2, 3], [2**40], [3, 2, 1], list(range(1000)), {"a": {}}),
)
"""Harmless wherever they stand: at most an error."""
BIG: tuple[Any, ...] = (6_000_000, 2**31 - 1, 2**31, 10**9, [10**9, 1, 1], [4096] * 4, 50_000)
"""Sizes that fit into memory, more or less. A user may ask for them, a file may not."""
# fmt: off
CODE: tuple[Any, ...] = (
    *("os:system", "canary:touch", "canary:Network", "os:abort", "os:_exit", "builtins:open", "shutil:rmtree"),
    {"name": "vgg11", "factory": "os:system", "kwargs": {"command": "touch owned"}},
    {"factory": "os:system", "kwargs": {"command": "touch owned"}}, {"factory": "canary:touch"},
    {"factory": "builtins:open", "kwargs": {"file": f"{OUTSIDE}/owned", "mode": "w"}},
    {"name": "mlp", "factory": "canary:Network", "kwargs": {}},
    *("timm/hf-hub:someone/model", "hf-hub:someone/model", f"timm/local-dir:{OUTSIDE}", f"local-dir:{OUTSIDE}"),
    *("timm/hf_hub:someone/model", "torchvision/resnet18", "timm/resnet18.a1_in1k", "mnist", "cifar10", "svhn"),
    {"name": "mnist", "root": f"{OUTSIDE}/data", "download": True}, {"name": "imagefolder", "root": OUTSIDE},
    *({"weights": "DEFAULT"}, {"weights_backbone": "DEFAULT"}, {"pretrained": True}, {"cache_dir": OUTSIDE}),
    {"checkpoint_path": f"{OUTSIDE}/secret.safetensors"},
    {"pretrained": True, "pretrained_cfg": {"file": f"{OUTSIDE}/secret.safetensors"}},
    {"pretrained_cfg_overlay": {"url": "http://localhost:9/x"}, "pretrained": True},
    {"distill": {"teacher": f"{OUTSIDE}/secret.safetensors"}},
    *(f"{OUTSIDE}/secret.safetensors", f"{OUTSIDE}/data", OUTSIDE),
)
# fmt: on
"""What must never be obeyed when it stands in a file."""
# fmt: off
KEYS = (
    *(
        "factory", "name", "kwargs", "weights", "pretrained", "checkpoint_path", "root", "download", "teacher",
        "distill",
    ),
    *(
        "model", "data", "plans", "gates", "folds", "config", "input", "epochs", "batch_size", "limit", "workers",
        "seed",
    ),
    *("device", "threads", "task", "", "__class__", "a", ESCAPES, "x" * 300, "\x00"),
)
# fmt: on


# -- data -------------------------------------------------------------------------------------------------------------


def damaged(rng: random.Random, data: Any, pool: Sequence[Any], keys: Sequence[str] = KEYS) -> Any:
    """Return a copy of data (mappings and lists) with one to three places changed."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not isinstance(data, dict | list) or not data or rng.random() < 0.02:
            return rng.choice(pool)
        box, key = _place(rng, data)
        rng.choice(_CHANGES)(rng, box, key, pool, keys)
    return data


def _place(rng: random.Random, data: Any) -> tuple[Any, Any]:
    """Walk down from the root, so that fields near it are met more often than the thousandth index of a list."""
    box = data
    while True:
        key = rng.choice(list(box)) if isinstance(box, dict) else rng.randrange(len(box))
        inner = box[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.25:
            return box, key
        box = inner


def _replace(rng: random.Random, box: Any, key: Any, pool: Sequence[Any], _: Sequence[str]) -> None:
    box[key] = copy.deepcopy(rng.choice(pool))


def _delete(_: random.Random, box: Any, key: Any, *__: Any) -> None:
    del box[key]


def _insert(rng: random.Random, box: Any, key: Any, pool: Sequence[Any], keys: Sequence[str]) -> None:
    value = copy.deepcopy(rng.choice((box[key], rng.choice(pool))))
    if isinstance(box, dict):
        box[rng.choice(keys)] = value
    else:
        box.insert(key, value)


def _swap(rng: random.Random, box: Any, key: Any, *_: Any) -> None:
    other = rng.choice(list(box)) if isinstance(box, dict) else rng.randrange(len(box))
    box[key], box[other] = box[other], box[key]


def _twist(rng: random.Random, box: Any, key: Any, *_: Any) -> None:
    """Change a value a little, so that it is still of its type."""
    value = box[key]
    if isinstance(value, bool) or value is None:
        box[key] = rng.choice((not value, 1, "true"))
    elif isinstance(value, int | float):
        box[key] = rng.choice((value + 1, value - 1, -value, value * 10, value / 3, str(value), [value]))
    elif isinstance(value, str):
        box[key] = rng.choice((value[:-1], value + "x", value.upper(), value * 2, [value], value.replace(".", ":")))
    elif isinstance(value, list):
        box[key] = rng.choice(
            (value[:-1], value * 2, value[::-1], [value], [*value, *value[:1]], dict(enumerate(value)))
        )
    elif isinstance(value, dict):
        box[key] = rng.choice((list(value), list(value.values()), [value], {**value, "extra": 1}, str(value)))


_CHANGES: tuple[Callable[..., None], ...] = (
    *(_replace,) * 6,
    *(_delete,) * 2,
    *(_insert,) * 2,
    _swap,
    *(_twist,) * 4,
)


def put(changes: Mapping[str, Any], data: Any) -> Any:
    """Return data with values at dotted paths."""
    for path, value in changes.items():
        *sections, last = path.split(".")
        box = data
        for section in sections:
            box = box[int(section)] if isinstance(box, list) else box.setdefault(section, {})
        box[int(last) if isinstance(box, list) else last] = value
    return data


def dumps(data: Any, depth: int = 100_000) -> str:
    """Return data as JSON, which is YAML too; also what `json` refuses: long numbers, and lists in lists in lists."""
    text = json.dumps(data, default=str)
    text = text.replace(f'"{LONG_NUMBER}"', "9" * 5000)
    return text.replace(f'"{DEEP}"', "[" * depth + "]" * depth)


# -- bytes and text ---------------------------------------------------------------------------------------------------


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return bytes with a few of them changed, lost, repeated or added."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(found) + 1) if rng.random() < 0.7 else rng.randrange(min(len(found) + 1, 200))
        length = rng.choice((1, 2, 8, 64, 1024))
        chunk = rng.choice(
            (b"", b"\x00" * length, b"\xff" * length, rng.randbytes(length), bytes(found[at : at + length]))
        )
        keep = rng.choice((0, length))
        found[at : at + keep] = chunk
        if rng.random() < 0.1:
            del found[at:]
    return bytes(found)


# fmt: off
YAML_BITS = (
    *("&a [*a]", "*a", "&a", "<<: *a\n", "<<: [*a, *b]\n", "? [1, 2]\n: 3\n", "\t", "---\n", "...\n", "%YAML 9.9\n"),
    *("!!python/object/apply:os.system ['touch owned']", "!!python/name:os.system", "!!python/module:canary"),
    *(
        "!!binary x", "!!set {a, b}", "!!float x", "!!int 0x", "!!timestamp 2001-99-99", "!x", "190:20:30", "0o17",
        "1_0",
    ),
    *("- ", ": ", "{", "}", "[", "]", "|", ">-\n", "'", '"', "#", ",", "\n", "  ", "\x00", "\x1b[31m", "é", "\u2028"),
    *("~", "null", "true", ".inf", ".nan", "-.inf", "1e308", "1e-5", "9" * 5000, "[" * 2000, "{a: " * 2000),
)
# fmt: on


def damaged_text(rng: random.Random, text: str, bits: Sequence[str] = YAML_BITS) -> str:
    """Return text with bits put in, in place of something or not."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(bits) + text[at + rng.choice((0, 0, 1, 5, 20)) :]
    return text


# -- safetensors ------------------------------------------------------------------------------------------------------

_BYTES = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "F16": 2,
    "BF16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "C64": 8,
}


def read_tensors(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the header of a safetensors file, and its data."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_tensors(path: Path, header: Any, data: bytes, length: int | None = None) -> None:
    """Write a safetensors file, whatever stands in its header."""
    text = header if isinstance(header, bytes) else dumps(header).encode("utf-8", "surrogatepass")
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def damaged_tensors(rng: random.Random, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return a consistent file with other tensors: another dtype, shape, name or content, one more or less."""
    tensors = {name: dict(entry) for name, entry in header.items() if name != "__metadata__"}
    contents = {name: data[slice(*entry["data_offsets"])] for name, entry in tensors.items()}
    name = rng.choice(list(tensors))
    change = rng.randrange(5)
    if change == 0:
        dtype = rng.choice(list(_BYTES))
        count = len(contents[name]) // _BYTES[tensors[name]["dtype"]]
        tensors[name]["dtype"], contents[name] = dtype, rng.randbytes(count * _BYTES[dtype])
    elif change == 1:
        tensors[name]["shape"] = rng.choice((tensors[name]["shape"][::-1], [1, *tensors[name]["shape"]], [1] * 80))
    elif change == 2:
        contents[name] = rng.choice((b"\x00", b"\xff", b"\x7f")) * len(contents[name])
    elif change == 3:
        tensors[rng.choice(KEYS)], contents["extra"] = dict(tensors[name]), contents[name]
    else:
        del tensors[name]
    return _joined(header, tensors, contents)


def _joined(
    header: dict[str, Any], tensors: dict[str, Any], contents: dict[str, bytes]
) -> tuple[dict[str, Any], bytes]:
    joined, data = {"__metadata__": header.get("__metadata__", {})}, b""
    for name, entry in tensors.items():
        content = contents.get(name, contents.get("extra", b""))
        joined[name] = {**entry, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return joined, data
