"""What a slim network needs to live on: `carry_over`, `save` of any module that was cut, `load`."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import bnprune
from bnprune.errors import ConfigError, PruningError
from tests.nets import chain, concat, depthwise, grouped, randomized, residual

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 5
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, centered=True),
}


def trained(optimizer: Callable[..., torch.optim.Optimizer], build: Callable[[], nn.Module] = residual):
    model = randomized(build()).train()
    made = optimizer(model.parameters())
    for _ in range(3):
        made.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        made.step()
    return model, made


def in_slim(result: bnprune.PruningResult, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Cut a tensor as the plan says, by hand."""
    for cut in result.plan.cuts:
        for place, dim in cut.at:
            if place == name:
                tensor = tensor.movedim(dim, 0)[list(cut.keep)].movedim(0, dim)
    return tensor


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("build", [residual, concat, depthwise, grouped])
def test_the_next_step_is_that_of_the_dense_network(name: str, build: Callable[[], nn.Module]) -> None:
    """These optimizers work elementwise: with equal gradients, the slim step is the cut dense step."""
    model, optimizer = trained(OPTIMIZERS[name], build)
    result = bnprune.prune(model, X[:1], ratio=0.4)
    carried = bnprune.carry_over(optimizer, result)
    slim = dict(result.model.named_parameters())
    for parameter_name, parameter in model.named_parameters():
        parameter.grad = torch.randn_like(parameter)
        slim[parameter_name].grad = in_slim(result, parameter_name, parameter.grad).clone()
    before = {key: value.detach().clone() for key, value in slim.items()}
    optimizer.step()
    carried.step()
    for parameter_name, parameter in model.named_parameters():
        torch.testing.assert_close(slim[parameter_name], in_slim(result, parameter_name, parameter.detach()))
        assert not torch.equal(slim[parameter_name], before[parameter_name])
    assert type(carried) is type(optimizer)


def test_groups_keep_their_settings_and_the_old_optimizer_stays() -> None:
    model = randomized(chain()).train()
    small = [p for p in model.parameters() if p.dim() < 2]
    large = [p for p in model.parameters() if p.dim() >= 2]
    optimizer = torch.optim.SGD(
        [{"params": large, "weight_decay": 0.01}, {"params": small, "lr": 0.5}], lr=0.1, momentum=0.9
    )
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    result = bnprune.prune(model, X[:1], ratio=0.4)
    carried = bnprune.carry_over(optimizer, result)
    del model  # as in `model = result.model`
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in carried.param_groups] == [
        (0.1, 0.01, len(large)), (0.5, 0, len(small)),
    ]  # fmt: skip
    F.cross_entropy(result.model(X), Y).backward()
    carried.step()
    assert len(calls) == 1
    assert str(optimizer.state_dict()) == str(before)


def test_biases_that_are_folded_away_are_not_trained() -> None:
    model, optimizer = trained(OPTIMIZERS["adam"])
    folded = bnprune.prune(model, X[:1], ratio=0.4, fold_bias=True)
    carried = bnprune.carry_over(optimizer, folded)
    held = {id(parameter) for group in carried.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in folded.model.parameters()}
    assert len(held) < len([*model.parameters()])


def test_gates_and_names_of_parameters() -> None:
    model = randomized(residual()).train()
    optimizer = torch.optim.AdamW(model.named_parameters(), 0.01)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    result = bnprune.prune(model, X[:1], ratio=0.4, coupling="gates")
    assert result.plan.gates
    carried = bnprune.carry_over(optimizer, result)
    assert carried.param_groups[0]["param_names"] == [name for name, _ in result.model.named_parameters()]
    assert all(carried.state[p]["exp_avg"].shape == p.shape for p in result.model.parameters())


def test_state_of_other_shapes_begins_anew() -> None:
    model = randomized(chain()).train()
    optimizer = torch.optim.Adafactor(model.parameters())
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    result = bnprune.prune(model, X[:1], ratio=0.4)
    carried = bnprune.carry_over(optimizer, result)
    factored = [p for p in result.model.parameters() if p.dim() > 1]
    assert not any(carried.state[p] for p in factored)
    assert any(carried.state[p] for p in result.model.parameters())  # biases have a state of their shape
    F.cross_entropy(result.model(X), Y).backward()
    carried.step()
    assert all(carried.state[p] for p in factored)


def test_what_a_schedule_left_behind_is_not_carried_over() -> None:
    model, optimizer = trained(OPTIMIZERS["sgd"])
    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    optimizer.param_groups[0]["lr"] = 0.001
    carried = bnprune.carry_over(optimizer, bnprune.prune(model, X[:1], ratio=0.4))
    assert torch.optim.lr_scheduler.CosineAnnealingLR(carried, 10).base_lrs == [0.001]


def test_an_optimizer_with_state_of_its_own_is_refused() -> None:
    model, _ = trained(OPTIMIZERS["sgd"])
    result = bnprune.prune(model, X[:1], ratio=0.4)
    with pytest.raises(PruningError, match="LBFGS has state of its own .* that cannot be cut"):
        bnprune.carry_over(torch.optim.LBFGS(model.parameters()), result)


def test_an_optimizer_of_another_network_is_refused() -> None:
    model, _ = trained(OPTIMIZERS["sgd"])
    other, optimizer = trained(OPTIMIZERS["sgd"])
    with pytest.raises(PruningError, match="not of the network that was pruned"):
        bnprune.carry_over(optimizer, bnprune.prune(model, X[:1], ratio=0.4))
    with pytest.raises(ConfigError, match="expected a torch optimizer"):
        bnprune.carry_over(other, bnprune.prune(model, X[:1], ratio=0.4))


def test_averaged_weights_are_cut_by_the_plan() -> None:
    model, _ = trained(OPTIMIZERS["sgd"])
    average = AveragedModel(model)
    average.update_parameters(model)
    result = bnprune.prune(model, X[:1], ratio=0.4)
    slim = bnprune.apply(result.plan, average.module).eval()
    assert torch.equal(slim(X), result.model.eval()(X))


# -- save and load -----------------------------------------------------------------------------------------------------


def wrappers() -> dict[str, Callable[[nn.Module], nn.Module]]:
    return {
        "bare": lambda model: model,
        "copied": copy.deepcopy,
        "averaged": AveragedModel,
        "parallel": nn.DataParallel,
        "compiled": lambda model: torch.compile(model, backend="eager"),
    }


@pytest.mark.parametrize("name", wrappers())
def test_a_network_that_was_trained_on_is_saved_with_its_plans(name: str, tmp_path: Path) -> None:
    model, _ = trained(OPTIMIZERS["sgd"])
    once = bnprune.prune(model, X[:1], ratio=0.3).model
    slim = bnprune.prune(once, X[:1], ratio=0.3).model
    with torch.no_grad():
        for parameter in slim.parameters():
            parameter += 0.1
    bnprune.save(wrappers()[name](slim), tmp_path / "slim.safetensors")
    again = bnprune.load(tmp_path / "slim.safetensors", model=residual())
    assert torch.equal(again(X), slim.eval()(X))
    bnprune.save(again, tmp_path / "again.safetensors")
    assert torch.equal(bnprune.load(tmp_path / "again.safetensors", model=residual())(X), slim(X))


def test_a_network_loaded_by_name_is_saved_with_its_name(tmp_path: Path) -> None:
    spec = bnprune.ModelSpec(name="vgg11", kwargs={"num_classes": 5, "in_channels": 3, "width": 0.125})
    dense = bnprune.build(spec)
    image = torch.randn(2, 3, 32, 32)
    bnprune.save(dense, tmp_path / "dense.safetensors", spec=spec, input_shape=(3, 32, 32))
    loaded = bnprune.load(tmp_path / "dense.safetensors")
    slim = bnprune.prune(loaded, image[:1], ratio=0.5).model.eval()
    bnprune.save(copy.deepcopy(slim), tmp_path / "slim.safetensors")
    assert torch.equal(bnprune.load(tmp_path / "slim.safetensors")(image), slim(image))


def test_device_and_dtype(tmp_path: Path) -> None:
    model, _ = trained(OPTIMIZERS["sgd"])
    slim = bnprune.prune(model, X[:1], ratio=0.3).model
    bnprune.save(slim, tmp_path / "slim.safetensors")
    half = bnprune.load(tmp_path / "slim.safetensors", model=residual(), device="cpu", dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16, torch.int64}
    assert half(X.bfloat16()).dtype == torch.bfloat16


def test_a_network_that_was_changed_after_the_cut_is_not_saved(tmp_path: Path) -> None:
    model, _ = trained(OPTIMIZERS["sgd"])
    slim = bnprune.prune(model, X[:1], ratio=0.3).model
    slim.stem = nn.Sequential(nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9))
    with pytest.raises(PruningError, match="the network was changed after the cut"):
        bnprune.save(slim, tmp_path / "slim.safetensors")
    assert not [*tmp_path.iterdir()]
    with pytest.raises(ConfigError, match="expected a network or the result"):
        bnprune.save(slim.state_dict(), tmp_path / "slim.safetensors")


def change_classes(model: nn.Module, count: int) -> None:
    """Replace the last layer, as for another data set."""
    name, last = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    model.set_submodule(name, nn.Linear(last.in_features, count))


def test_a_network_with_a_new_last_layer_is_not_saved_although_that_layer_was_not_cut(tmp_path: Path) -> None:
    model, _ = trained(OPTIMIZERS["sgd"])
    slim = bnprune.prune(model, X[:1], ratio=0.3).model
    change_classes(slim, 7)
    message = r"weight had shape \(5, .*\), and has \(7, .*\) now: the network was changed after the cut.*torch\.save"
    with pytest.raises(PruningError, match=message):
        bnprune.save(copy.deepcopy(slim), tmp_path / "slim.safetensors")
    again = bnprune.prune(slim, X[:1], ratio=0.3).model  # its plan is for another network than the first plan gives
    with pytest.raises(PruningError, match=message):
        bnprune.save(again, tmp_path / "slim.safetensors")
    change_classes(model, 7)  # the way out
    slim = bnprune.prune(model, X[:1], ratio=0.3).model
    bnprune.save(slim, tmp_path / "slim.safetensors")
    assert torch.equal(bnprune.load(tmp_path / "slim.safetensors", model=model)(X), slim.eval()(X))


def test_a_network_loaded_by_name_with_a_new_last_layer_needs_a_new_spec(tmp_path: Path) -> None:
    kwargs = {"num_classes": 5, "in_channels": 3, "width": 0.125}
    spec = bnprune.ModelSpec(name="vgg11", kwargs=kwargs)
    path = tmp_path / "dense.safetensors"
    bnprune.save(bnprune.build(spec), path, spec=spec, input_shape=(3, 32, 32))
    loaded = bnprune.load(path)
    change_classes(loaded, 7)
    with pytest.raises(PruningError, match="changed after it was loaded.*Give the spec"):
        bnprune.save(loaded, path)
    bnprune.save(loaded, path, spec=bnprune.ModelSpec(name="vgg11", kwargs={**kwargs, "num_classes": 7}))
    assert bnprune.load(path)(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
