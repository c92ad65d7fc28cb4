"""The stage `scratch`, a baseline: the slim architecture, trained from new weights as long as the pruned network.

Liu et al., "Rethinking the Value of Network Pruning", ICLR 2019, section 3: Scratch-E spends as many epochs, Scratch-B
as much computation. Here, all training of the pruned network counts, fine-tuning included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bnprune.config.schema import PipelineConfig, SparsityConfig, TrainConfig
from bnprune.data.splits import combined_seed
from bnprune.models.zoo import build, set_gamma
from bnprune.pruning.surgery import apply
from bnprune.runs.checkpoint import Header, read_header
from bnprune.runs.directory import RunDirectory
from bnprune.runs.preflight import Network, spec_of
from bnprune.runs.results import StageResult
from bnprune.runs.stages import CONTROLS, KINDS, kind_of, order_of


def scratch_network(config: PipelineConfig, directory: RunDirectory) -> Network:
    """Return the architecture of the last pruned network with new weights.

    The weights are those of a new dense network (the initialization of its constructor, with another seed), pruned by
    the same plans.
    """
    header = read_header(directory.checkpoint(_last(directory.result().stages)))
    model = _dense_from_new_weights(config)
    for plan in header.plans:
        model = apply(plan, model)
    return model, Header(header.spec, header.plans)


def scratch_training(config: PipelineConfig, stages: Mapping[str, StageResult]) -> TrainConfig:
    """Return the settings of the training: those of `train` without a penalty, as long as all stages together.

    Args:
        config: The recipe; its key `scratch` says if epochs or computation are equal.
        stages: Figures of the finished stages.
    """
    trained = (figures for stage, figures in stages.items() if kind_of(stage) in ("train", "finetune"))
    spent = [(figures.epochs or 0, figures.macs) for figures in trained]
    slim = stages[_last(stages)].macs
    equal = config.scratch == "compute"
    epochs = sum(count * (macs / slim if equal else 1) for count, macs in spent)
    changes = {"epochs": max(1, round(epochs)), "sparsity": SparsityConfig(penalty="none")}
    return (config.train or TrainConfig()).model_copy(update=changes)


def _last(stages: Mapping[str, Any]) -> str:
    return max((stage for stage in stages if kind_of(stage) not in CONTROLS), key=order_of)


def _dense_from_new_weights(config: PipelineConfig) -> nn.Module:
    seed = combined_seed(config.seed, KINDS.index("scratch"))
    drawn = []
    for number in (seed, config.seed):
        torch.manual_seed(number)
        drawn.append(build(spec_of(config)))
    model = drawn[0]
    if _is_pretrained(*drawn):
        for module in model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    if config.model.gamma_init is not None:
        set_gamma(model, config.model.gamma_init)
    return model


def _is_pretrained(one: nn.Module, other: nn.Module) -> bool:
    """Return True if the constructor loads weights: two networks from different seeds are equal."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs if left.dim() > 1)
