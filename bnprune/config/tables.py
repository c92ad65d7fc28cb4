"""Tables of criteria, penalties and export formats: each entry has a sentence and a function.

The flags, the recipe keys, the references and the messages list the names from here. Nothing here imports torch: an
entry names its function as "module:attribute", which is imported when the entry is first called.

To add one in a program of your own, assign to the table; a plain function will do, and the first line of its docstring
is its sentence:

>>> CRITERIA["gamma-squared"] = gamma_squared
>>> bnprune.prune(model, example_inputs, ratio=0.5, criterion="gamma-squared")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A function that is imported when it is called."""

    sentence: str
    """Completes "NAME: ..." in help and references."""
    implementation: str
    """The function, as "module:attribute"."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Import the function and call it."""
        module, _, attribute = self.implementation.partition(":")
        return getattr(import_module(module), attribute)(*args, **kwargs)


@dataclass(frozen=True)
class ExportFormat(Entry):
    """A file format of exported networks; see `bnprune.exporters.artifact.Written` for what the function returns."""

    suffixes: tuple[str, ...]
    """File name suffixes, the usual one first."""
    requirement: str = ""
    """A function that raises ConfigError if a package is missing, as "module:attribute"; it is called with a text that
    says what needs the packages."""

    def require_packages(self) -> None:
        """Check that the packages which the format needs are installed.

        Raises:
            ConfigError: One is missing.
        """
        if self.requirement:
            Entry("", self.requirement)(f"the format {self.suffixes[0].removeprefix('.')}")


_SCORES = "bnprune.pruning.scores"
CRITERIA: dict[str, Callable[..., Any]] = {
    "gamma": Entry("|γ| of the BatchNorm (Liu et al. 2017)", f"{_SCORES}:gamma"),
    "gamma-per-mac": Entry("|γ| / √MACs of the channel", f"{_SCORES}:gamma_per_mac"),
    "uniform": Entry("rank of |γ| within its layer, which removes the same share of every layer", f"{_SCORES}:uniform"),
    "random": Entry("at random, as a baseline", f"{_SCORES}:random"),
    "l1": Entry("mean |w| of the filters (Li et al. 2017)", f"{_SCORES}:l1"),
    "l2": Entry("root mean square of the filters", f"{_SCORES}:l2"),
}
"""Functions (graph, tensors, reduce) -> one score per unit; units with the lowest scores are removed first."""

_PENALTIES = "bnprune.training.penalties.table"
PENALTIES: dict[str, Callable[..., Any]] = {
    "l1": Entry("adds λ·sign(γ) to the gradient (Liu et al. 2017)", f"{_PENALTIES}:l1"),
    "l1-proximal": Entry("soft-thresholds γ after each step, which gives exact zeros", f"{_PENALTIES}:l1_proximal"),
    "polarization": Entry("separates γ into two groups (Zhuang et al. 2020)", f"{_PENALTIES}:polarization"),
    "group-lasso": Entry(
        "channels that must go together reach zero together, which gives exact zeros", f"{_PENALTIES}:group_lasso"
    ),
    "mac-weighted-l1": Entry("l1, in proportion to the MACs that each channel costs", f"{_PENALTIES}:mac_weighted_l1"),
}
"""Functions (`PenaltySetting`) -> `GammaPenalty`."""

_FORMATS = "bnprune.exporters.artifact"
FORMATS: dict[str, ExportFormat] = {
    "onnx": ExportFormat(
        "ONNX, for other runtimes", f"{_FORMATS}:write_onnx", (".onnx",), "bnprune.exporters.onnx:require_onnx"
    ),
    "pt2": ExportFormat("a program of torch.export", f"{_FORMATS}:write_pt2", (".pt2",)),
    "state-dict": ExportFormat(
        "plain weights, and a Python file with the architecture",
        f"{_FORMATS}:write_state_dict",
        (".safetensors", ".pt", ".pth"),
    ),
}


def sentences(table: Mapping[str, Any]) -> dict[str, str]:
    """Return the sentence of each entry of a table; of a plain function, the first line of its docstring."""
    return {
        name: entry.sentence if isinstance(entry, Entry) else (entry.__doc__ or "").strip().partition("\n")[0]
        for name, entry in table.items()
    }


def listed(choices: Mapping[str, str], quote: str = "") -> str:
    """Return choices as text: "max: the largest; mean: the mean".

    Args:
        choices: The sentence of each name.
        quote: What to put around names, such as a backtick.
    """
    return "; ".join(
        f"{quote}{name}{quote}: {text}" if text else f"{quote}{name}{quote}" for name, text in choices.items()
    )
