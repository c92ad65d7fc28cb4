"""Saved states of runs, and weights from elsewhere."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import bnprune
from fuzzing.cases import (
    MODEL,
    SMALL,
    Builder,
    Case,
    fifo,
    holding,
    loop,
    take,
    zero,
)
from fuzzing.values import (
    DEEP,
    ESCAPES,
    LONG_NUMBER,
    PLAIN,
    damaged,
    damaged_bytes,
    damaged_tensors,
    read_tensors,
    write_tensors,
)


class _Executes:
    """A pickle that runs a program."""

    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


def on_state(base: Path, write: Callable[[Path], None]) -> Case:
    take(base, "stopped", "own.yaml", "own.py", "canary.py")
    state = Path("stopped/checkpoints/last.state.pt")
    state.unlink()
    write(state)
    return Case(("run", "own.yaml", "--resume", "--out", "stopped"), imports=("own",), changes=("stopped/",))


def known_state(write: Callable[[Path], None], _: random.Random, base: Path) -> Case:
    return on_state(base, write)


def _saved(data: Any, **options: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(data, path, **options)


def _pickled(protocol: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(pickle.dumps(_Executes(), protocol))


def _script(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("constants.pkl", "data.pkl"):
            archive.writestr(f"x/{name}", pickle.dumps(_Executes(), 2))
        archive.writestr("x/version", "3")


def _zip_bomb(path: Path) -> None:
    """A tensor of 4 GB that takes 4 MB."""
    torch.save({"a": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in parts.items():
            if not name.endswith("data/0"):
                archive.writestr(name, content)
                continue
            with archive.open(name, "w", force_zip64=True) as member:
                for _ in range(64):
                    member.write(bytes(2**24))


# fmt: off
_ODD_PICKLES: tuple[Callable[[Path], None], ...] = (
    *(_saved(value) for value in ([1], 5, {"a": 1}, None, "x", {}, [], {"stage": "train"}, {1: 2}, torch.zeros(3))),
    *(_saved(_Executes()), _saved({"stage": _Executes()}), _saved(_Executes(), _use_new_zipfile_serialization=False)),
    *(_saved({"a": torch.zeros(3), "b": _Executes()}), _saved({"a": torch.zeros(3)}, pickle_protocol=5)),
    *(_pickled(protocol) for protocol in range(6)),
    *(
        _script, _zip_bomb, holding(b""), holding(b"PK\x03\x04"), holding(b"\x80\x02]q\x00."), fifo, zero, loop,
        Path.mkdir,
    ),
)
# fmt: on
KNOWN_STATES: list[Builder] = [partial(known_state, write) for write in _ODD_PICKLES]


def _quantized(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but files of them are about
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def tensors_of_all_kinds() -> tuple[Any, ...]:
    """Return tensors that are not dense float32 ones in memory."""
    plain = torch.arange(6.0).reshape(2, 3)
    return (
        *(plain, torch.zeros(()), torch.zeros(0), torch.zeros(3, dtype=torch.int64), torch.zeros(8, dtype=torch.bool)),
        *(torch.full((8,), float("nan")), torch.zeros(8, dtype=torch.complex64), torch.zeros(8, dtype=torch.float64)),
        *(
            torch.zeros(8, dtype=torch.bfloat16),
            torch.zeros(8, dtype=torch.float8_e4m3fn),
            torch.zeros(8, device="meta"),
        ),
        *(plain.to_sparse(), torch.zeros(1).expand(10**12), _quantized(plain)),
        *(torch.zeros(8).requires_grad_(), torch.nn.Parameter(torch.zeros(8)), torch.zeros(8, dtype=torch.uint8)),
    )


def draw_state(rng: random.Random, base: Path) -> Case:
    good = base / "stopped/checkpoints/last.state.pt"
    if rng.random() < 0.35:
        return on_state(base, holding(damaged_bytes(rng, good.read_bytes())))
    pool = (*(value for value in PLAIN if value not in (DEEP, LONG_NUMBER)), 10**400, *tensors_of_all_kinds())
    state = torch.load(good, weights_only=True)
    with contextlib.suppress(Exception):
        state = damaged(rng, state, pool)
    return on_state(base, partial(_save_if_possible, state))


def _save_if_possible(data: Any, path: Path) -> None:
    try:
        torch.save(data, path)
    except Exception:  # noqa: BLE001 - text that no pickle can hold
        path.write_bytes(pickle.dumps(repr(data)))


def on_weights(rng: random.Random, base: Path, name: str) -> Case:
    take(base, "canary.py")
    verb = rng.choice(
        (("inspect",), ("inspect", "--json"), ("prune", "--out", "out.safetensors"), ("prune", "--dry-run"))
    )
    return Case((*verb, *MODEL, "--weights", name, "--input", "3,8,8"))


def good_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(bnprune.build(bnprune.ModelSpec("mlp", kwargs=SMALL["kwargs"])).state_dict())


def known_weights(write: Callable[[Path], None], rng: random.Random, base: Path) -> Case:
    write(Path("bad.pt"))
    return on_weights(rng, base, "bad.pt")


def one_tensor(index: int, rng: random.Random, base: Path) -> Case:
    """Replace a tensor by one of its shape and another kind."""
    state = good_weights()
    kinds = _converted(state["layers.2.weight"])
    state["layers.2.weight"] = kinds[index % len(kinds)]
    torch.save(state, "bad.pt")
    return on_weights(rng, base, "bad.pt")


def _converted(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    dtypes = (torch.int64, torch.int8, torch.bool, torch.complex64, torch.float64, torch.float16, torch.bfloat16)
    more = (torch.uint8, torch.float8_e5m2, torch.uint16)
    odd = (tensor.to("meta"), tensor.to_sparse(), _quantized(tensor))
    return (*(tensor.to(dtype) for dtype in (*dtypes, *more)), *odd, tensor * float("nan"), tensor * float("inf"))


KNOWN_WEIGHTS: list[Builder] = [
    *(partial(known_weights, write) for write in _ODD_PICKLES),
    *(partial(one_tensor, index) for index in range(len(_converted(torch.ones(1))))),
    *(
        partial(known_weights, lambda path, key=key: torch.save({key: good_weights()}, path))
        for key in ("state_dict", "model", ESCAPES, "x" * 100_000)
    ),
]


def draw_weights(rng: random.Random, base: Path) -> Case:
    state = good_weights()
    if rng.random() < 0.4:
        torch.save(state, "bad.pt")
        Path("bad.pt").write_bytes(damaged_bytes(rng, Path("bad.pt").read_bytes()))
        return on_weights(rng, base, "bad.pt")
    if rng.random() < 0.5:
        pool = (*(value for value in PLAIN if value not in (DEEP, LONG_NUMBER)), *tensors_of_all_kinds())
        changed: Any = dict(state)
        with contextlib.suppress(Exception):
            changed = damaged(rng, changed, pool)
        _save_if_possible(changed, Path("bad.pt"))
        return on_weights(rng, base, "bad.pt")
    from safetensors.torch import save

    path = Path("bad.safetensors")
    path.write_bytes(save(state))
    if rng.random() < 0.6:
        write_tensors(path, *damaged_tensors(rng, *read_tensors(path)))
    else:
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    return on_weights(rng, base, path.name)
