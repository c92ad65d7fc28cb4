"""Latency of the finished networks on the CPU, side by side with the network that was cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import bnprune
from arena import results
from arena.cells import Cell
from bnprune.runs.files import write_json
from bnprune.timing.backends import Backend, Setting
from bnprune.timing.measure import measure

BACKENDS: tuple[Backend, ...] = ("eager", "onnxruntime")
BATCHES = (1, 32)
_ROUNDS = {1: 200, 32: 60}


def measure_cells(work: Path, folder: Path, command: str) -> tuple[int, int]:
    """Add latencies to the documents that have none; return how many were measured, and how many have no network."""
    torch.set_num_threads(1)
    done = missing = 0
    for document in results.read_all(folder):
        cell = Cell(**document["cell"])
        if cell.macs is None or "latency" in document or "failed" in document:
            continue
        final = work / "runs" / cell.name / "final.pt"
        base = work / "runs" / cell.base.name / "checkpoints" / "train.safetensors"
        if not (final.exists() and base.exists()):
            missing += 1
            continue
        document["latency"] = _measured(final, base) | {"environment": results.environment(command)}
        write_json(results.path_of(folder, cell), document)
        done += 1
        print(f"{cell.name}: {document['latency']['eager-1']['ms']:.2f} ms", flush=True)
    return done, missing


def _measured(final: Path, base: Path) -> dict[str, Any]:
    """Measure a network and the one it was cut from, in turn: medians in milliseconds, and the ratio of both."""
    slim, dense = torch.load(final, weights_only=False), bnprune.load(base)  # a file of this script's own
    found: dict[str, Any] = {}
    for backend in BACKENDS:
        for batch in BATCHES:
            setting = Setting(shape=(3, 16, 16))
            timing = measure([dense.eval(), slim.eval()], backend, setting, batch, _ROUNDS[batch])
            before, after = (1e3 * spread.median for spread in timing.seconds)
            assert timing.ratio is not None
            found[f"{backend}-{batch}"] = {"ms": after, "dense_ms": before, "ratio": timing.ratio.median}
    return found
