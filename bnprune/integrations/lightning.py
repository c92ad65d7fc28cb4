"""Sparse training in Lightning.

>>> trainer = Trainer(callbacks=[SparseTraining(target=0.6)])
"""

from __future__ import annotations

import math
from typing import Any

from bnprune.errors import ConfigError
from bnprune.training.sparsify import Sparsity, sparsify

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:  # the package under its other name
    from pytorch_lightning import Callback, LightningModule, Trainer


class SparseTraining(Callback):
    """Attaches `bnprune.sparsify` to the optimizer of a Lightning module for the length of a training.

    The share of scale factors near zero is logged after each epoch: "gamma_below", and with a target
    "gamma_removable". Checkpoints of the trainer hold the state of the penalty, so that a training can be resumed, also
    with more epochs.

    Args:
        optimizer: Index of the optimizer that trains the scale factors, if the module has several.
        settings: Keyword arguments of `bnprune.sparsify`: `target`, `travel` or `lambda_`, `penalty`, `exclude`, and so
            on. `steps` is taken from the trainer, which needs `max_steps` if it has no number of epochs, or if the
            number of batches of an epoch is not known.
    """

    penalty: Sparsity | None = None
    """The penalty of the present or the last training."""

    def __init__(self, *, optimizer: int = 0, **settings: Any) -> None:
        self._optimizer, self._settings = optimizer, settings
        self._saved: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the penalty, at the step of a checkpoint if the trainer has loaded one.

        Raises:
            ConfigError: The trainer does not know how many steps there will be.
        """
        steps = trainer.estimated_stepping_batches
        if not 0 < steps < math.inf:  # -1 for data of unknown length
            raise ConfigError(
                "SparseTraining: the trainer does not know how many optimizer steps there will be "
                f"(max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps}), and the penalty depends on it. "
                "Give it max_steps."
            )
        self.penalty = sparsify(pl_module, trainer.optimizers[self._optimizer], steps=int(steps), **self._settings)
        saved, self._saved = self._saved, {}
        if saved and trainer.global_step:  # a trainer also restores callbacks to test a checkpoint
            self.penalty.load_state_dict(saved)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log where the scale factors stand."""
        if self.penalty is not None:
            state = self.penalty.gammas()
            pl_module.log("gamma_below", state.below)
            if state.removable is not None:
                pl_module.log("gamma_removable", state.removable)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach the penalty."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detach the penalty."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the penalty, for the trainer's checkpoints."""
        return {} if self.penalty is None else self.penalty.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the state of a checkpoint, which is loaded when training starts."""
        self._saved = state_dict

    def _detach(self) -> None:
        if self.penalty is not None:
            self.penalty.detach()
