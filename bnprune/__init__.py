"""Network Slimming for any PyTorch CNN: prune channels by BatchNorm scale factors, and verify the slim network.

>>> result = bnprune.prune(model, example_inputs, ratio=0.5)
>>> bnprune.save(result, "slim.safetensors")

Names are imported when they are first used, so that `bnprune --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnprune.channels.op_context import OpContext
    from bnprune.channels.ops.spec import rule
    from bnprune.channels.union_find import Refusal
    from bnprune.errors import (
        BnpruneError,
        CheckpointError,
        ConfigError,
        DataError,
        ForwardError,
        Interrupted,
        PruningError,
        TraceError,
        TrainingError,
        UntrustedError,
        VerificationError,
    )
    from bnprune.models.zoo import ModelSpec, build
    from bnprune.pruning.inspection import Inspection, inspect
    from bnprune.pruning.plan import PruningPlan
    from bnprune.pruning.pruner import PruningResult, plan, prune
    from bnprune.pruning.report import Report
    from bnprune.pruning.surgery import apply
    from bnprune.pruning.verify import Verification
    from bnprune.recovery.compensate import Compensation, compensate
    from bnprune.recovery.recalibrate import recalibrate
    from bnprune.recovery.reconstruct import reconstruct
    from bnprune.runs.network_file import load, save
    from bnprune.training.carry_over import carry_over
    from bnprune.training.penalties.gamma import GammaL1, GammaPolarization, GammaProximal
    from bnprune.training.penalties.structured import GammaGroupLasso, GammaMacWeighted
    from bnprune.training.sparsify import Sparsity, SparsityState, sparsify
    from bnprune.workflows.benchmark import benchmark
    from bnprune.workflows.export import export
    from bnprune.workflows.run import run
    from bnprune.workflows.sensitivity import sensitivity
    from bnprune.workflows.sweep import sweep

__version__ = "0.1.0"

_NAMES_BY_MODULE = {
    "bnprune.channels.union_find": ("Refusal",),
    "bnprune.channels.op_context": ("OpContext",),
    "bnprune.channels.ops": ("rule",),
    "bnprune.errors": (
        "BnpruneError",
        "CheckpointError",
        "ConfigError",
        "DataError",
        "ForwardError",
        "Interrupted",
        "PruningError",
        "TraceError",
        "TrainingError",
        "UntrustedError",
        "VerificationError",
    ),
    "bnprune.models.zoo": ("ModelSpec", "build"),
    "bnprune.recovery.compensate": ("Compensation", "compensate"),
    "bnprune.pruning.inspection": ("Inspection", "inspect"),
    "bnprune.pruning.plan": ("PruningPlan",),
    "bnprune.pruning.pruner": ("PruningResult", "plan", "prune"),
    "bnprune.pruning.report": ("Report",),
    "bnprune.pruning.surgery": ("apply",),
    "bnprune.pruning.verify": ("Verification",),
    "bnprune.runs.network_file": ("load", "save"),
    "bnprune.recovery.recalibrate": ("recalibrate",),
    "bnprune.recovery.reconstruct": ("reconstruct",),
    "bnprune.training.penalties.gamma": ("GammaL1", "GammaPolarization", "GammaProximal"),
    "bnprune.training.carry_over": ("carry_over",),
    "bnprune.training.sparsify": ("Sparsity", "SparsityState", "sparsify"),
    "bnprune.training.penalties.structured": ("GammaGroupLasso", "GammaMacWeighted"),
    "bnprune.workflows.benchmark": ("benchmark",),
    "bnprune.workflows.export": ("export",),
    "bnprune.workflows.run": ("run",),
    "bnprune.workflows.sensitivity": ("sensitivity",),
    "bnprune.workflows.sweep": ("sweep",),
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}

__all__ = [
    "BnpruneError",
    "CheckpointError",
    "Compensation",
    "ConfigError",
    "DataError",
    "ForwardError",
    "GammaGroupLasso",
    "GammaL1",
    "GammaMacWeighted",
    "GammaPolarization",
    "GammaProximal",
    "Inspection",
    "Interrupted",
    "ModelSpec",
    "OpContext",
    "PruningError",
    "PruningPlan",
    "PruningResult",
    "Refusal",
    "Report",
    "Sparsity",
    "SparsityState",
    "TraceError",
    "TrainingError",
    "UntrustedError",
    "Verification",
    "VerificationError",
    "apply",
    "benchmark",
    "build",
    "carry_over",
    "compensate",
    "export",
    "inspect",
    "load",
    "plan",
    "prune",
    "recalibrate",
    "reconstruct",
    "rule",
    "run",
    "save",
    "sensitivity",
    "sparsify",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'bnprune' has no attribute '{name}'")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
