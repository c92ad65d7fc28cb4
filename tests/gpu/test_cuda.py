"""On a CUDA device: pruning and its proof, training in every precision, measuring, exporting. Skipped without one.

Run with `pytest -m gpu`.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from bnprune.pruning.verify import mask
from tests.cli.harness import done
from tests.nets import chain, concat, depthwise, head, randomized, residual
from tests.ranks import ended, spawn

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

RECIPE = """\
seed: 0
device: cuda
model: {name: vgg11, kwargs: {in_channels: 1, width: 0.25}, gamma_init: 0.5}
data: {name: digits}
train: {epochs: 12, lr: 0.1}
prune: {ratio: 0.5}
finetune: {epochs: 3, lr: 0.02}
"""


@pytest.fixture(autouse=True)
def exact_matmul() -> None:
    """TF32 has ten bits of mantissa, so that results on the two devices could not be compared."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("make", [chain, residual, concat, depthwise])
def test_a_network_on_the_device_is_cut_as_on_the_cpu(make: Any) -> None:
    model, x = randomized(make()), torch.randn(2, 3, 16, 16)
    expected = bnprune.prune(model, x, ratio=0.4)
    result = bnprune.prune(copy.deepcopy(model).cuda(), x.cuda(), ratio=0.4)
    assert result.plan == expected.plan
    assert result.report.max_relative_error is not None
    assert result.report.max_relative_error < 1e-9
    assert {p.device.type for p in result.model.parameters()} == {"cuda"}
    output = result.model.eval()(x.cuda()).cpu()
    torch.testing.assert_close(output, expected.model.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x1_0", "densenet121"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_torchvision_networks_are_proven_on_the_device(name: str, layout: torch.memory_format) -> None:
    model = randomized(bnprune.build(bnprune.ModelSpec(f"torchvision/{name}"))).cuda().to(memory_format=layout)
    result = bnprune.prune(model, torch.randn(1, 3, 96, 96, device="cuda"), ratio=0.5)
    assert result.report.max_relative_error is not None
    assert result.report.max_relative_error < 1e-9


@pytest.mark.parametrize("make", [chain, residual, depthwise])
def test_in_train_mode_cudnn_normalises_both_networks_alike(make: Any) -> None:
    """The proof compares networks in eval mode, where BatchNorm is an affine function of each channel."""
    model, x = randomized(make()).cuda(), torch.randn(8, 3, 16, 16, device="cuda")
    assert torch.backends.cudnn.is_acceptable(x)
    result = bnprune.prune(model.train(), x, ratio=0.4)
    masked, slim = mask(model, result.plan).train(), result.model.train()
    torch.testing.assert_close(slim(x), masked(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_sparsify_acts_in_the_steps_that_the_scaler_takes(fused: bool) -> None:
    """Forward pass in fp16; the first step overflows, so that the scaler (or a fused optimizer itself) skips it."""
    model = randomized(chain()).cuda().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, fused=fused)
    penalty = bnprune.sparsify(model, optimizer, steps=1000, lambda_=0.3)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    first = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))

    def step(factor: float) -> float:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(torch.randn(8, 3, 16, 16, device="cuda")).float().square().mean() * factor
        scaler.scale(loss).backward()
        first.weight.grad = torch.full_like(first.weight, factor * 0.0)  # only the penalty moves these, or an overflow
        scaler.step(optimizer)
        scaler.update()
        return float(first.weight.detach().abs().sum())

    before = float(first.weight.detach().abs().sum())
    assert step(float("inf")) == before
    assert penalty.gammas().step == 0
    expected = float((first.weight.detach().abs() - 0.05 * 0.3).clamp(min=0).sum())
    assert step(1.0) == pytest.approx(expected, rel=1e-5)
    assert penalty.gammas().step == 1


def test_two_processes_share_one_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With gloo, as nccl refuses that. They see the same images as one process does."""
    if torch.cuda.device_count() > 1:
        pytest.skip("each process takes a device of its own here")
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    settings = ("train.epochs=6", "train.sync_bn=true")
    done("train", "recipe.yaml", *settings, "--out", "alone")
    refused = ended(spawn("train", "recipe.yaml", *settings, "--out", "refused"))
    assert {code for code, _, _ in refused} == {2}
    assert any("device=cuda:0" in message for _, _, message in refused)
    both = ended(spawn("train", "recipe.yaml", *settings, "device=cuda:0", "--out", "both"))
    assert [code for code, _, _ in both] == [0, 0], both
    documents = (json.loads(Path(name, "result.json").read_text()) for name in ("alone", "both"))
    alone, together = (document["stages"]["train"]["accuracy"] for document in documents)
    assert together == pytest.approx(alone, abs=0.1)


@pytest.mark.parametrize(
    "settings",
    [(), ("train.precision=bf16",), ("train.precision=fp16",), ("train.channels_last=true", "train.precision=bf16")],
    ids=["fp32", "bf16", "fp16", "channels_last"],
)
def test_a_recipe_runs_on_the_device(
    settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    done("run", "recipe.yaml", *settings, "--out", "run")
    stages = json.loads(Path("run/result.json").read_text())["stages"]
    assert stages["train"]["accuracy"] > 0.9
    assert stages["prune"]["channels"] <= 0.55 * stages["train"]["channels"]
    assert stages["finetune"]["accuracy"] > 0.9


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch 2.11 itself uses it
def test_compiled_training_runs_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    done("train", "recipe.yaml", "train.compile=true", "train.epochs=2", "--out", "run")


def test_a_stopped_training_goes_on_from_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    done("train", "recipe.yaml", "--out", "whole", "train.epochs=2")
    done("train", "recipe.yaml", "--out", "whole", "train.epochs=2", "--resume")
    done("evaluate", "whole")


def test_the_penalty_acts_after_unscaling() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), head(8)).cuda()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cuda")
    penalty = bnprune.GammaL1(model, 0.5)
    norm = model[1]
    with torch.autocast("cuda", dtype=torch.float16):
        loss = F.cross_entropy(model(torch.randn(4, 3, 8, 8, device="cuda")), torch.arange(4, device="cuda"))
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    before = norm.weight.grad.clone()
    penalty.add_gradients()
    torch.testing.assert_close(norm.weight.grad, before + 0.5 * norm.weight.sign())


def test_statistics_are_recalibrated_and_constants_compensated_on_the_device() -> None:
    model, x = randomized(residual()).cuda(), torch.randn(8, 3, 16, 16, device="cuda")
    result = bnprune.prune(model, x, ratio=0.3)
    bnprune.compensate(model, result.model, result.plan, x)
    bnprune.recalibrate(result.model, [x, x + 1])
    assert torch.isfinite(result.model.eval()(x)).all()


def test_networks_on_the_device_are_measured_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done("prune", "--model", "resnet20", "--input", "3,32,32", "--ratio", "0.5", "--out", "slim.safetensors")
    shown = done("benchmark", "slim.safetensors", "--dense", "--device", "cuda", "--rounds", "5").stdout
    assert torch.cuda.get_device_name() in shown
    for name in ("slim.pt2", "slim.onnx"):
        done("export", "slim.safetensors", "--out", name)


def test_a_network_on_the_device_is_saved_and_loaded(tmp_path: Path) -> None:
    model, x = randomized(residual()).cuda(), torch.randn(4, 3, 16, 16, device="cuda")
    result = bnprune.prune(model, x, ratio=0.4)
    bnprune.save(result, tmp_path / "slim.safetensors")
    loaded = bnprune.load(tmp_path / "slim.safetensors", model=residual()).cuda().eval()
    torch.testing.assert_close(loaded(x), result.model.eval()(x), rtol=1e-5, atol=1e-5)
    program = torch.export.export(result.model.eval(), (x,)).module()
    torch.testing.assert_close(program(x), result.model(x), rtol=1e-4, atol=1e-4)


def test_wrong_surgery_is_caught_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnprune.pruning import pruner as module

    right = module.copy_weights

    def broken(slim: nn.Module, plan: Any, model: nn.Module) -> nn.Module:
        slim = right(slim, plan, model)
        with torch.no_grad():
            next(p for p in slim.parameters() if p.dim() == 4).mul_(1.001)
        return slim

    monkeypatch.setattr(module, "copy_weights", broken)
    with pytest.raises(bnprune.VerificationError):
        bnprune.prune(randomized(chain()).cuda(), torch.randn(2, 3, 16, 16, device="cuda"), ratio=0.4)
