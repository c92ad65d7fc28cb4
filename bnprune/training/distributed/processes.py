"""The processes that train one network together: `torchrun --nproc-per-node N -m bnprune ...`.

Process 0 leads: it alone reads recipes and checkpoints, writes files, prunes and writes messages. The others wait
until it sends them a training (`send`, `receive`), take part in it, and wait again.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from bnprune.errors import BnpruneError, PeerFailed
from bnprune.training.distributed import torchrun_env

_TIMEOUT = datetime.timedelta(days=7)
"""Longest wait for the leader, which may be pruning. A process that dies closes its connections immediately."""
_TOO_FEW = "bnprune/too_few_devices"
"""Key of the store, followed by a rank: "1" if there are fewer devices than processes on the machine of that rank."""
_FAILED, _REPORTED = "bnprune/failed", "bnprune/reported"
"""Keys of the store: the exit code of a process that failed, and the number of processes that asked to report it."""


@dataclass(frozen=True)
class Processes:
    """This process among those of a run; alone by default."""

    rank: int = 0
    local_rank: int = 0
    """Among the processes of this machine; also the number of its accelerator."""
    size: int = 1
    control: Any = None
    """Process group (gloo) for decisions and small objects."""
    shares_accelerator: bool = False
    """True if some machine has fewer CUDA devices than processes, so that they can only share one (with gloo)."""

    @property
    def leads(self) -> bool:
        """True for the process that decides and writes files."""
        return self.rank == 0

    @property
    def tag(self) -> tuple[int, ...]:
        """Numbers to mix into the seeds of this process; none for the leader, which draws as a single process does."""
        return (self.rank,) if self.rank else ()

    @property
    def restarted(self) -> bool:
        """True if `torchrun --max-restarts` started these processes again, with the same arguments as before."""
        return torchrun_env.restarts() > 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag True if it is set in any process. All processes must call this."""
        if self.size == 1:
            return flags
        found = torch.tensor(flags, dtype=torch.uint8)
        distributed.all_reduce(found, distributed.ReduceOp.MAX, group=self.control)
        return tuple(bool(flag) for flag in found)

    def add(self, *tensors: torch.Tensor) -> None:
        """Replace tensors by their sums over all processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors of floating point by their means over all processes, in place, in one message per dtype."""
        if self.size == 1:
            return
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.flatten() for tensor in alike])
            distributed.all_reduce(flat)
            parts = (flat / self.size).split([tensor.numel() for tensor in alike])
            for tensor, part in zip(alike, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in the order of their ranks, to all of them."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value, group=self.control)
        return found

    def send(self, value: Any) -> None:
        """Send a value to the other processes. Called by the leader."""
        if self.size > 1:
            distributed.broadcast_object_list([value], src=0, group=self.control)

    def receive(self) -> Any:
        """Wait for a value from the leader, and return it. Called by the followers."""
        box: list[Any] = [None]
        distributed.broadcast_object_list(box, src=0, group=self.control)
        return box[0]


SINGLE_PROCESS = Processes()
"""One process."""


@contextmanager
def open_processes() -> Iterator[Processes]:
    """Join the processes that `torchrun` started; without `torchrun`, there is one process.

    Raises:
        PeerFailed: Another process failed and printed the message; this one ends with the same exit code.
    """
    if torchrun_env.processes() == 1:
        yield SINGLE_PROCESS
        return
    rank, local = torchrun_env.rank(), torchrun_env.local_rank()
    c10d: Any = distributed  # both functions are documented, but not typed as public
    store, _, size = next(c10d.rendezvous("env://"))
    # If torchrun starts processes again, the store still holds the entries of those before.
    store = c10d.PrefixStore(f"attempt {torchrun_env.restarts()}", store)
    shared, backend = _too_few_devices(store, rank, size), "gloo"
    if torch.cuda.is_available() and not shared:
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"  # nccl refuses two processes on one device
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    control: Any = distributed.new_group(backend="gloo", timeout=_TIMEOUT)
    with _failing_together(rank, store):
        yield Processes(rank, local, size, control, shared)
        distributed.barrier(group=control)
    distributed.destroy_process_group()  # not after a failure: it would wait for processes that have ended


def _too_few_devices(store: Any, rank: int, size: int) -> bool:
    """Return True if some machine has CUDA devices, but fewer than processes. All processes get the same answer."""
    here = 0 < torch.cuda.device_count() < torchrun_env.local_processes()
    store.set(f"{_TOO_FEW}/{rank}", str(int(here)))
    return any(store.get(f"{_TOO_FEW}/{other}") == b"1" for other in range(size))


@contextmanager
def _failing_together(rank: int, store: Any) -> Iterator[None]:
    """Store the exit code if this process fails; if it failed because of another one, end with the code of that one."""
    try:
        yield
    except PeerFailed:
        raise
    except BaseException as caught:
        from_torch = isinstance(caught, RuntimeError) and not isinstance(caught, BnpruneError)
        error = _root_cause(rank, store, caught) if from_torch else caught
        if isinstance(error, PeerFailed):
            raise error from caught
        stopped = 130 if isinstance(error, KeyboardInterrupt) else 1
        code = error.exit_code if isinstance(error, BnpruneError) else stopped
        if not _reports_first(store, code):
            raise PeerFailed(code) from caught
        if error is caught:
            raise
        raise error from caught


def _reports_first(store: Any, code: int) -> bool:
    """Store the exit code; return True if this process is the first to fail, which then prints the message."""
    try:
        store.set(_FAILED, str(code))
        return bool(store.add(_REPORTED, 1) == 1)
    except RuntimeError:  # the process that held the store has ended
        return True


def _root_cause(rank: int, store: Any, error: BaseException) -> BaseException:
    """Return a PeerFailed if the error follows from the failure of another process; otherwise the error itself."""
    try:
        noted = store.check([_FAILED])
    except RuntimeError:  # the leader, which holds the store, has ended and printed the message
        return PeerFailed(BnpruneError.exit_code)
    if noted:
        return PeerFailed(int(store.get(_FAILED)))
    # torch raises a plain RuntimeError here, so that only its text says that a connection was closed.
    if any(word in str(error) for word in ("peer", "gloo", "Gloo", "NCCL")):
        return BnpruneError(
            f"process {rank}: another process of this run ended without a message (killed, or out of memory?). "
            "The run can be resumed.",
            remedy={"resume": True},
        )
    return error
