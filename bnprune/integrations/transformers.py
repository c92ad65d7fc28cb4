"""Sparse training with the Trainer of transformers.

>>> trainer = Trainer(model, arguments, train_dataset=images, callbacks=[SparseTraining(target=0.6)])
"""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from bnprune.training.sparsify import Sparsity, sparsify


class SparseTraining(TrainerCallback, ExportableState):
    """Attaches `bnprune.sparsify` to the optimizer of a Trainer for the length of a training.

    The share of scale factors near zero is logged with the loss: "gamma_below", and with a target "gamma_removable".
    They are in `trainer.state.log_history`, and printed; `add_to` brings them to reporters (TensorBoard) as well. The
    state of the penalty is saved with the state of the Trainer, so that a training can be resumed.

    Args:
        settings: Keyword arguments of `bnprune.sparsify`: `target`, `travel` or `lambda_`, `penalty`, `exclude`, and so
            on. `steps` is taken from the Trainer.
    """

    penalty: Sparsity | None = None
    """The penalty of the present or the last training."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    def add_to(self, trainer: Trainer) -> None:
        """Make this the first callback of a Trainer, whether it has it already or not.

        A Trainer calls its reporters before the callbacks that it was given, so that they would not see what this one
        logs.
        """
        callbacks = trainer.callback_handler.callbacks
        callbacks[:] = [self, *(callback for callback in callbacks if callback is not self)]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach the penalty, at the step of a checkpoint if the Trainer has loaded one."""
        self._detach()  # a training that an error ended did not call on_train_end
        self.penalty = sparsify(kwargs["model"], kwargs["optimizer"], steps=int(state.max_steps), **self._settings)
        if state.global_step:
            stored = state.stateful_callbacks.get(type(self).__name__, {})
            saved = (stored[0] if isinstance(stored, list) else stored).get("attributes", {}).get("saved")
            if saved:  # read here, because the Trainer restores callbacks only if it is asked to
                self.penalty.load_state_dict(saved)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log where the scale factors stand."""
        if logs is not None and self.penalty is not None:
            gammas = self.penalty.gammas()
            shares = {"gamma_below": gammas.below}
            if gammas.removable is not None:
                shares["gamma_removable"] = gammas.removable
            logs.update(shares)  # for the callbacks that follow; the history holds a copy
            state.log_history[-1].update(shares)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Detach the penalty."""
        self._detach()

    def state(self) -> dict[str, Any]:
        """Return the state of the penalty, and those settings that JSON can hold, for the Trainer's checkpoints."""
        saved = {} if self.penalty is None else self.penalty.state_dict()
        plain = {key: value for key, value in self._settings.items() if isinstance(value, str | int | float | None)}
        return {"args": plain, "attributes": {"saved": saved}}

    def _detach(self) -> None:
        if self.penalty is not None:
            self.penalty.detach()
