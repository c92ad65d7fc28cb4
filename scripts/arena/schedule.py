"""Running cells in parallel processes, within a budget of time."""

from __future__ import annotations

import multiprocessing
import os
import re
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from arena import results
from arena.arms import ARMS, base_recipe
from arena.cells import Cell
from arena.execution import MOST_SCRATCH_EPOCHS, Arena, execute
from bnprune.config.schema import FinetuneConfig, PipelineConfig, TrainConfig
from bnprune.errors import BnpruneError, Interrupted
from bnprune.runs.signals import stop_requests

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(text: str) -> float:
    """Return the seconds of a budget such as 90m, 6h or 3d."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise SystemExit(f"--budget: expected a number with s, m, h or d, such as 90m (got '{text}')")
    return float(match[1]) * _UNITS[match[2]]


def work_of(cell: Cell, arena: Arena) -> float:
    """Return the computation of a cell: epochs, times the share of the MACs of the dense network."""
    config = arena.recipe(cell)
    base, tuned = (config.train or TrainConfig()).epochs, (config.finetune or FinetuneConfig()).epochs
    if cell.macs is None:
        return base
    scratch = ARMS[cell.arm].scratch
    if scratch is None:
        return cell.macs * tuned
    return cell.macs * (base + tuned if scratch == "epochs" else min(MOST_SCRATCH_EPOCHS, base / cell.macs + tuned))


def estimate(cell: Cell, arena: Arena) -> float | None:
    """Return the seconds that a cell will take, by those that finished ones took; None if there are none yet.

    Slim networks take more time per MAC than dense ones, so cells of the same network and share count first. The median
    is taken, since the times of trainings that were paused or disturbed are too long.
    """
    rates: dict[int, list[float]] = {}
    for document in results.read_all(arena.results):
        spent, other = document.get("seconds", {}).get("training"), document["cell"]
        if spent is None:
            continue
        rate = spent / work_of(Cell(**other), arena)
        nearness = (other["network"] == cell.network) + (other["macs"] == cell.macs)
        rates.setdefault(nearness, []).append(rate)
    return statistics.median(rates[max(rates)]) * work_of(cell, arena) if rates else None


# -- processes ---------------------------------------------------------------------------------------------------------


def _work(connection: Connection, arena: Arena) -> None:
    """Carry out cells until there are no more. A process keeps the images that it has read."""
    leader = os.getppid()
    with stop_requests() as stopping:

        def ending() -> bool:
            return stopping() or os.getppid() != leader  # the leader was killed: nobody would receive the result

        while (cell := connection.recv()) is not None:
            try:
                execute(cell, arena, ending)
                connection.send("done")
            except Interrupted:
                connection.send("stopped")
            except BnpruneError as error:
                connection.send(f"failed: {error}")
            except Exception:  # noqa: BLE001 - one cell must not end the others; the traceback is shown
                connection.send(f"failed: {traceback.format_exc()}")
            if ending():
                return


@dataclass
class _Worker:
    """A process, and the cell that it carries out."""

    process: Any
    connection: Connection
    cell: Cell | None = None
    started: float = 0.0

    @classmethod
    def start(cls, arena: Arena) -> _Worker:
        context = multiprocessing.get_context("spawn")  # a forked process would share the state of torch
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, arena), daemon=True)
        process.start()
        theirs.close()
        return cls(process, ours)

    def give(self, cell: Cell) -> None:
        self.cell, self.started = cell, time.monotonic()
        self.connection.send(cell)

    def answer(self) -> str | None:
        """Return what became of the cell; None if it is not finished."""
        if self.cell is None or not (self.connection.poll() or not self.process.is_alive()):
            return None
        try:
            return str(self.connection.recv()) if self.connection.poll(0.5) else "failed: its process was killed"
        except (EOFError, ConnectionError):
            return "failed: its process was killed"


@dataclass
class Schedule:
    """The cells that are left, and the workers that carry them out."""

    arena: Arena
    cells: list[Cell]
    count: int
    deadline: float
    """In seconds of the monotonic clock."""
    say: Callable[[str], None] = print
    workers: list[_Worker] = field(default_factory=list)
    failed: set[Cell] = field(default_factory=set)
    too_long: set[Cell] = field(default_factory=set)

    def run(self) -> bool:
        """Carry out all cells, or those that the budget allows; return True if nothing failed."""
        with stop_requests() as stopping:
            while not stopping() and time.monotonic() < self.deadline:
                self._collect()
                self._distribute()
                if not any(worker.cell for worker in self.workers):
                    break
                time.sleep(0.2)
            self._stop()
        left = [cell for cell in self.cells if cell not in self.failed]
        self.say(f"{len(self.failed)} failed, {len(left)} left" + (": run the same command again" if left else ""))
        return not self.failed

    def _distribute(self) -> None:
        busy = {worker.cell for worker in self.workers}
        for cell in list(self.cells):
            free = next((worker for worker in self.workers if worker.cell is None), None)
            if free is None and len(self.workers) >= self.count:
                return
            if cell in busy | self.failed | self.too_long or not self._is_ready(cell):
                continue
            expected = estimate(cell, self.arena)
            if expected is not None and time.monotonic() + expected > self.deadline:
                self.too_long.add(cell)
                self.say(f"{cell.name}: takes about {expected:.0f} s, more than is left of the budget")
                continue
            if free is None:
                free = _Worker.start(self.arena)
                self.workers.append(free)
            about = "" if expected is None else f", about {expected:.0f} s"
            self.say(f"{time.strftime('%H:%M:%S')} {cell.name}{about}")
            free.give(cell)

    def _is_ready(self, cell: Cell) -> bool:
        """Return True if the cells that it needs are finished; a cell whose base failed fails too."""
        states = [results.read(self.arena.results, needed) for needed in cell.needs]
        if any(needed in self.failed for needed in cell.needs) or any(state and "failed" in state for state in states):
            self.failed.add(cell)
            self.say(f"{cell.name}: what it needs has failed")
        return all(states) and cell not in self.failed

    def _collect(self) -> None:
        for worker in list(self.workers):
            answer = worker.answer()
            if answer is None:
                continue
            cell = worker.cell
            assert cell is not None
            worker.cell = None
            if answer == "done":
                self.cells.remove(cell)
            elif answer != "stopped":
                self.failed.add(cell)
            self.say(f"{time.strftime('%H:%M:%S')} {cell.name}: {answer}, {time.monotonic() - worker.started:.0f} s")
            if not worker.process.is_alive():
                self.workers.remove(worker)

    def _stop(self) -> None:
        """End the workers: those that train save their state first."""
        for worker in self.workers:
            if worker.cell is None:
                worker.connection.send(None)
            else:
                worker.process.terminate()
        for worker in self.workers:
            worker.process.join()
        self._collect()


def unfinished(cells: Sequence[Cell], arena: Arena) -> list[Cell]:
    """Return the cells without a result.

    Raises:
        SystemExit: A finished one was made by another recipe: figures of different settings do not go together.
    """
    left = []
    for cell in cells:
        document = results.read(arena.results, cell)
        if document is None:
            left.append(cell)
        elif document["recipe"] != results.recipe_data(_recipe(cell, arena)):
            raise SystemExit(
                f"--results: '{cell.name}.json' was made by another recipe, or with other key=value pairs. Choose "
                "another folder, or remove the file."
            )
    return left


def _recipe(cell: Cell, arena: Arena) -> PipelineConfig:
    config = arena.recipe(cell)
    return base_recipe(config, cell.arm) if cell.macs is None else config
