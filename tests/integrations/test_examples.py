"""The examples of `bnprune/integrations/README.md` run, each with the real package."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import bnprune
from tests.integrations.digits_detection import SIZE, write_yolo_data
from tests.nets import conv_bn

README = (Path(bnprune.__file__).parent / "integrations" / "README.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^## ([^\n]*)\n(?:(?!^## ).)*?^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
PACKAGES = {
    "A loop of your own, accelerate": "accelerate",
    "Lightning": "lightning",
    "transformers": "transformers",
    "ultralytics": "ultralytics",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "torchvision's detectors": "torchvision",
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(conv_bn(1, 8), conv_bn(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def names(package: str, folder: Path) -> dict[str, Any]:
    """What an example takes for granted."""
    images, labels = torch.rand(32, 1, 16, 16), torch.arange(32) % 10
    model = network()
    known = {
        "torch": torch, "model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.05), "epochs": 1,
        "loader": DataLoader(TensorDataset(images, labels), 8), "images": images, "cross_entropy": F.cross_entropy,
        "steps": 2,
        "items": [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)],
        "quiet_trainer": {"report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True},
        "quiet": {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
        "photos": torch.rand(2, 3, 64, 64), "masks": torch.zeros(2, 64, 64, dtype=torch.long),
        "pictures": [torch.rand(3, 320, 320) for _ in range(2)],
        "targets": [{"boxes": torch.tensor([[10.0, 10.0, 90.0, 90.0]]), "labels": torch.tensor([1])} for _ in range(2)],
    }  # fmt: skip
    if package == "lightning":
        known["module"] = _lightning_module(model)
    if package == "ultralytics":
        data = write_yolo_data(folder / "data", train=32, validation=8)
        known["data"] = {
            "data": str(data), "imgsz": SIZE, "batch": 16, "workers": 0, "device": "cpu", "plots": False,
            "project": str(folder / "runs"), "exist_ok": True, "amp": False,
        }  # fmt: skip
    return known


def _lightning_module(model: nn.Module) -> Any:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.05)

    return Module()


def test_every_example_is_known() -> None:
    assert EXAMPLES.keys() == PACKAGES.keys()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("title", PACKAGES)
def test_an_example_runs(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = PACKAGES[title]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLO_OFFLINE", "True")
    exec(compile(EXAMPLES[title], "README.md", "exec"), names(package, tmp_path))
