"""`sparsify`: a sparsity penalty in a training loop of one's own, through the hooks of its optimizer."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import nn

from bnprune.channels.graph import ChannelGraph
from bnprune.channels.modules import unwrapped
from bnprune.channels.torch_internals import own_tensors
from bnprune.channels.trace_network import Outputs, trace
from bnprune.config.schema import SparsityConfig
from bnprune.config.suggested_numbers import rounded_up
from bnprune.config.user_code import hinting_arguments
from bnprune.errors import ConfigError
from bnprune.notes import Note
from bnprune.pruning.candidates import Constraints, matches, require_match
from bnprune.training.first_inputs import FirstInputs
from bnprune.training.optimizer_rates import LiveTravel, Rates, torch_optimizer, was_skipped
from bnprune.training.penalties.gamma import (
    GammaPenalty,
    described,
    gamma_statistics,
    mean_gamma,
    require_scale_factors,
    scale_factors,
)
from bnprune.training.penalties.lambda_schedule import Steered
from bnprune.training.penalties.structured import Groups, gamma_units
from bnprune.training.penalties.table import (
    CLOSE,
    PENALTIES,
    TRAVEL,
    PenaltySetting,
    steering_target,
    strongest,
    strongest_steered,
)


@dataclass(frozen=True)
class SparsityState:
    """The scale factors γ at one moment of a training: what `gammas()` of a penalty by `bnprune.sparsify` returns.

    `print(state)` is one line, for a log.

    Example::

        penalty = bnprune.sparsify(model, optimizer, steps=1000, target=0.6, example_inputs=example_inputs)
        state = penalty.gammas()
        print(state.step, state.steps)  # 0 1000
        median = state.quantiles[2]
    """

    step: int
    """Optimizer steps taken."""
    steps: int
    """Optimizer steps of the whole training."""
    quantiles: tuple[float, float, float, float, float]
    """Minimum, first quartile, median, third quartile and maximum of |γ|."""
    below: float
    """Share of all scale factors with |γ| below epsilon."""
    split: bool
    """True if |γ| falls into two groups: at least 5% below epsilon, and at most 1% between epsilon and 3 epsilon."""
    removable: float | None
    """Share of the prunable channels that are below epsilon together with all channels that go with them: this is what
    `target` asks for. None if the network was not traced."""
    target: float | None
    """The share that was asked for; None without a target."""
    on_course: bool | None
    """True if the target can still be reached, or has been; None without a target, and before the first step."""

    def __str__(self) -> str:
        low, _, median, _, high = self.quantiles
        text = f"step {self.step:,} of {self.steps:,}: |γ| from {low:.2g} to {high:.2g}, median {median:.2g}"
        text += f"; {self.below:.0%} near zero, {'' if self.split else 'not yet '}apart from the others"
        if self.target is None or self.removable is None:
            return text
        course = "" if self.on_course is None else f" ({'on course' if self.on_course else 'not on course'})"
        return f"{text}; removable {self.removable:.0%} of {self.target:.0%}{course}"


@hinting_arguments
def sparsify(
    model: nn.Module,
    optimizer: Any,
    *,
    steps: int,
    target: float | None = None,
    travel: float | None = None,
    lambda_: float | Literal["auto"] = "auto",
    penalty: str = "l1",
    epsilon: float = 0.01,
    exclude: Sequence[str] = (),
    outputs: Outputs | None = None,
    example_inputs: Any = None,
) -> Sparsity:
    """Add a sparsity penalty on the BatchNorm scale factors γ to a training loop, which stays as it is.

    A hook on the optimizer applies the penalty after every step: after unscaling and clipping, once per optimizer step
    with gradient accumulation, not in steps that a GradScaler skips, and equally on every rank. In each step, |γ| falls
    by lr·λ, or by lr·λ/(1 - momentum) with SGD: as far as λ·sign(γ) in the gradient moves it (Liu et al., ICCV 2017,
    equation 1), but it stops at zero, and adaptive optimizers cannot normalise the penalty away.

    The strength is one of three:

    - `target` adjusts λ in each step so that this share of the prunable channels is at zero after `steps` steps. Then
      `bnprune.prune(model, inputs, ratio=target)` removes channels that no longer do anything.
    - `travel` computes a constant λ. Without the gradient of the loss, and at the peak learning rate in every step, it
      would lower each |γ| by this multiple of the mean |γ|; by half of that if the learning rate decays linearly or
      along a cosine to zero.
    - `lambda_` is λ itself.

    Without any, `travel` is 5. Leave weight decay off for γ and β: it shrinks all of them alike.

    Example::

        penalty = bnprune.sparsify(model, optimizer, steps=epochs * len(loader), target=0.6)
        ...  # the training loop
        print(penalty.gammas())
        penalty.detach()

    Args:
        model: The network; it may be wrapped in DistributedDataParallel or torch.compile.
        optimizer: The optimizer that trains it, or the wrapper of it that accelerate or Lightning returned.
        steps: Optimizer steps of the whole training.
        target: Share of the prunable BatchNorm channels to bring below epsilon, in (0, 1). A channel counts if all
            channels that have to be removed with it are below epsilon.
        travel: Decrease of |γ| over all steps that λ is computed from, as a multiple of the mean |γ|: what the penalty
            alone would do at the peak of the learning rate. The peak is the one that a schedule names if the optimizer
            has not taken a step yet, otherwise the present learning rate. If the learning rate rises above that, λ is
            lowered in proportion.
        lambda_: λ, at least 0.
        penalty: Name of the penalty, see `bnprune.config.tables.PENALTIES`.
        epsilon: A scale factor with |γ| below this counts as zero.
        exclude: Layers that will not be pruned, by their names in `model` (in a wrapper, those of the network inside),
            as for `bnprune.prune`; a target does not pull them to zero.
        outputs: As for `bnprune.prune`.
        example_inputs: As for `bnprune.prune`. By default, the network is traced with the inputs of its first forward
            pass. Needed if the loop calls parts of the network one by one.

    Returns:
        The penalty, which is in force until its `detach` is called.

    Raises:
        ConfigError: An argument is out of range, two of target, travel and lambda_ are given, no layer has a name in
            `exclude`, the optimizer does not train the scale factors of the network, or another penalty on them is
            attached to it.
        PruningError: The network has no trainable BatchNorm scale factor.
    """
    if sum(given is not None for given in (target, travel, None if lambda_ == "auto" else lambda_)) > 1:
        raise ConfigError("sparsify: give one of target, travel and lambda_.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"sparsify: steps is the number of optimizer steps, at least 1 (got {steps!r}).")
    config = _checked(penalty=penalty, target=target, travel=travel, epsilon=epsilon, **{"lambda": lambda_})
    patterns = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    attached = Sparsity(model, optimizer, config, steps, patterns, outputs)
    if example_inputs is not None:
        try:
            attached.trace_with(example_inputs)
        except BaseException:
            attached.detach()
            raise
    for note in attached.notes:
        warnings.warn(str(note), stacklevel=2)
    return attached


def _checked(**values: Any) -> SparsityConfig:
    try:
        return SparsityConfig.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])).replace("lambda", "lambda_")
        message = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(f"sparsify: {where}: {message}" if where else f"sparsify: {message}") from error


_attached: weakref.WeakSet[Sparsity] = weakref.WeakSet()
"""All penalties that are attached to an optimizer. An optimizer alone refers to its hooks, so they end with it."""


class Sparsity:
    """A penalty that `bnprune.sparsify` attached to an optimizer.

    It acts in every `optimizer.step()` until `detach` is called or `steps` steps were taken. Save `state_dict()` with
    the optimizer to go on with an interrupted training.

    Example::

        penalty = bnprune.sparsify(model, optimizer, steps=1000, travel=5)
        saved = penalty.state_dict()
        penalty.detach()
        penalty = bnprune.sparsify(model, optimizer, steps=1000, travel=5)
        penalty.load_state_dict(saved)
    """

    notes: tuple[Note, ...]
    """Warnings about a penalty that cannot have an effect."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        config: SparsityConfig,
        steps: int,
        exclude: Sequence[str],
        outputs: Outputs | None,
    ) -> None:
        self._network = unwrapped(model)
        self._optimizer = torch_optimizer(optimizer)
        self._config, self._steps, self._exclude, self._outputs = config, steps, exclude, outputs
        layers = [name for name, module in self._network.named_modules() if own_tensors(module)]
        for pattern in exclude:
            require_match(layers, pattern, "sparsify: exclude")
        gammas = require_scale_factors(self._network)
        self._rates = Rates(self._optimizer, gammas)
        self._require_no_other(gammas)
        self._step, self._start = 0, mean_gamma(gammas)
        self._peak = self._rates.peak()
        """The largest lr · gain that is known, or has come."""
        self._strength = self._solved(self._peak)
        self._travel = LiveTravel(steps)
        self._penalty: GammaPenalty | None = None
        self._groups: Groups | None = None
        self._share = 0.0
        """The target as a share of all scale factors."""
        self._inputs = FirstInputs()
        self._step_hook = self._optimizer.register_step_post_hook(self._after_step)
        _attached.add(self)
        self.notes = tuple(self._warnings())
        if self._is_traced:
            self._inputs.watch(model)

    def __repr__(self) -> str:
        strength = self._strength if self._penalty is None else self._penalty.present
        count = sum(gamma.numel() for gamma in require_scale_factors(self._network))
        aim = "" if self._config.target is None else f", target {self._config.target:g}"
        step = f"step {self._step:,} of {self._steps:,}"
        return f"{type(self).__name__}({self._config.penalty}{aim}, {described(strength, count)}, {step})"

    # -- what a user calls ---------------------------------------------------------------------------------------------

    def gammas(self) -> SparsityState:
        """Return the present distribution of the scale factors, and whether the target will be reached."""
        gammas = require_scale_factors(self._network)
        statistics = gamma_statistics(gammas, self._config.epsilon)
        removable = None
        if self._groups is not None and self._penalty is not None:
            magnitudes = torch.cat([gamma.detach().abs().flatten() for gamma in self._penalty.gammas])
            near_zero = self._groups.reduce(magnitudes, "max") < self._config.epsilon
            removable = float(near_zero.sum()) / self._groups.count
        return SparsityState(
            step=self._step,
            steps=self._steps,
            quantiles=statistics.quantiles,
            below=statistics.below,
            split=statistics.split,
            removable=removable,
            target=self._config.target,
            on_course=self._on_course(removable),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what has to be saved with the optimizer so that an interrupted training can go on."""
        return {
            "step": self._step,
            "steps": self._steps,
            "start": self._start,
            "peak": self._peak,
            "strength": self._strength,
            "travel": self._travel.done,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved `state_dict`. Call it after the weights of the network and the optimizer are restored.

        The training may be longer or shorter than the one that was saved. A target is then to be reached at its new
        end; a constant λ stays as it was.

        Raises:
            ConfigError: The state is not one of a penalty, or of a training that took more steps than this one has.
        """
        missing = self.state_dict().keys() - state.keys()
        if missing:
            raise ConfigError(f"sparsify: the saved state lacks {', '.join(sorted(missing))}.")
        if state["step"] > self._steps:
            raise ConfigError(
                f"sparsify: the saved training took {state['step']:,} steps, and this one has {self._steps:,}. `steps` "
                "counts those of the whole training, from its beginning."
            )
        self._step, self._start = int(state["step"]), float(state["start"])
        self._peak, self._strength = float(state["peak"]), float(state["strength"])
        self._travel.done = float(state["travel"])
        self._travel.step = self._step
        self.notes = tuple(self._warnings())
        if self._penalty is not None:
            self._steer(self._penalty)

    def detach(self) -> None:
        """Remove all hooks. The penalty has no effect from now on."""
        self._step_hook.remove()
        self._inputs.detach()
        _attached.discard(self)

    def trace_with(self, example_inputs: Any) -> None:
        """Trace the network now, with these inputs instead of those of the first forward pass."""
        self._inputs.set(self._network, example_inputs)
        self._build_penalty()

    def _require_no_other(self, gammas: Sequence[nn.Parameter]) -> None:
        """Refuse a second penalty on the same scale factors; one that has reached its last step is detached."""
        mine = {id(gamma) for gamma in gammas}
        for other in [one for one in _attached if one._optimizer is self._optimizer]:
            if mine.isdisjoint(map(id, scale_factors(other._network))):
                continue
            if other._step < other._steps:
                raise ConfigError(
                    f"sparsify: a penalty is attached to this optimizer already, in step {other._step:,} of "
                    f"{other._steps:,}, and both would act. Call its detach() first."
                )
            other.detach()

    # -- the penalty ---------------------------------------------------------------------------------------------------

    def _after_step(self, *_: Any) -> None:
        if was_skipped(self._optimizer) or self._step >= self._steps:
            return
        if self._penalty is None:
            self._build_penalty()
        assert self._penalty is not None
        moves = self._rates.now()
        self._travel.step, self._travel.rate = self._step, float(torch.as_tensor(moves).max())
        if self._travel.rate > self._peak:
            self._peak = self._travel.rate
            self._strength = self._solved(self._peak)
            self._steer(self._penalty)
        if self._travel.rate:  # 0 in the first step of some warm-ups
            self._penalty.at(self._step)
            self._penalty.shrink(moves)
        self._travel.done += self._travel.rate
        self._step += 1

    def _build_penalty(self) -> None:
        """Make the penalty; trace the network first, if the channels matter."""
        network, example = self._inputs.taken() if self._is_traced else (self._network, None)
        setting = PenaltySetting(
            network, self._strength, self._config, sgd=False, gain=1.0, example_inputs=example, coupling="shared",
            outputs=self._outputs,
        )  # fmt: skip
        penalty: GammaPenalty = PENALTIES[self._config.penalty](setting)
        penalty.gain = 1.0  # applied after the step, in any case: `_rates` holds the gain of the optimizer
        if self._is_traced:
            graph = trace(network, example, outputs=self._outputs)
            units = gamma_units(network, graph)
            if self._config.target is not None:
                limits = Constraints(exclude=self._excluded(network, graph))
                units, self._share = steering_target(network, graph, self._config.target, limits)
            self._groups = Groups(units)
        self._rates = Rates(self._optimizer, penalty.gammas)
        self._steer(penalty)
        self._penalty = penalty

    def _excluded(self, part: nn.Module, graph: ChannelGraph) -> tuple[str, ...]:
        """Return the layers to exclude, by their names in the part of the network that was traced."""
        place = next(name for name, module in self._network.named_modules() if module is part)
        names = {layer.name: f"{place}.{layer.name}" if place else layer.name for layer in graph.layers}
        return tuple(name for name, whole in names.items() if any(matches(whole, pattern) for pattern in self._exclude))

    def _steer(self, penalty: GammaPenalty) -> None:
        """Set λ of a penalty: a constant, or a schedule that steers it if there is a target."""
        penalty.set_strength(self._strength)
        if self._config.target is not None and self._groups is not None:
            penalty.lambda_at = Steered(
                self._share, self._groups, self._travel, self._config.epsilon, self._strength, self._steered_limit
            )

    @property
    def _is_traced(self) -> bool:
        entry = PENALTIES[self._config.penalty]
        return self._config.target is not None or getattr(entry, "needs_channels", False)

    @property
    def _limit(self) -> float:
        return strongest(sgd=isinstance(self._optimizer, torch.optim.SGD))

    @property
    def _steered_limit(self) -> float:
        return strongest_steered(sgd=isinstance(self._optimizer, torch.optim.SGD))

    def _solved(self, peak: float) -> float:
        """Return λ: the one that was given, or the one for `travel` if lr · gain were `peak` in every step."""
        if self._config.lambda_ != "auto":
            return self._config.lambda_
        reach = max(self._steps * peak, 1e-30)
        return min((self._config.travel or TRAVEL) * self._start / reach, self._limit)

    def _on_course(self, removable: float | None) -> bool | None:
        if self._config.target is None or removable is None or self._step == 0:
            return None
        if removable >= self._config.target - CLOSE:
            return True
        if self._step >= self._steps or self._penalty is None:
            return False
        if not self._travel.rate:
            return None
        with torch.no_grad():
            self._penalty.at(self._step)
            strengths = torch.as_tensor(self._penalty.present)
        return bool(strengths.max() < self._steered_limit)

    def _warnings(self) -> Iterator[Note]:
        peak = max(self._peak, self._rates.named_peak())  # the benefit of the doubt: a false warning misleads
        reach = self._steps * peak  # the distance that γ can move at most, with λ = 1
        if not reach:  # a warm-up that begins at 0, to a learning rate that only the loop knows
            return
        needed = self._start / reach
        steered = self._config.target is not None
        strength = self._steered_limit if steered else self._solved(peak)
        if not strength or strength * reach >= self._start:
            return
        text = (
            f"λ = {strength:.3g} can move γ by at most {strength * reach:.2g} in {self._steps:,} steps, and mean "
            f"|γ| is {self._start:.2g}: no scale factor will reach zero. "
        )
        if needed <= self._limit and not steered:
            text += f"Use λ above {rounded_up(needed, 2)}, or give a target."
        else:
            text += "Train for more steps, raise the learning rate, or let γ start lower."
        yield Note("sparsify.too_weak", "warning", text)
