"""Doctor: versions, devices and problems of the installation. It also works if torch cannot be imported."""

from __future__ import annotations

import importlib.util
import platform
import re
from importlib import metadata

from bnprune.workflows.results import DoctorResult

_CORE = ("bnprune", "torch", "torchvision", "numpy", "pydantic", "PyYAML", "rich", "safetensors", "typer")
_EXTRAS = {
    "demo": ("sklearn",),
    "timm": ("timm",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "report": ("matplotlib",),
    "metrics": ("torchmetrics", "pycocotools"),
    "tensorboard": ("tensorboard",),
    "bench": ("timm", "torch_pruning"),
}
_NEED = re.compile(r"torch\s*\(?(==|>=)\s*([\d.]+)")
_REINSTALL = "Install both from one index, in one command: pip install --upgrade --force-reinstall torch torchvision"
_MISMATCH = "operator torchvision::nms does not exist"


def doctor() -> DoctorResult:
    """Return versions, devices and problems of the installation; import errors are explained problems."""
    problems: list[str] = []
    versions = {}
    for package in _CORE:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            problems.append(f"{package} is not installed: pip install {package.lower()}")
    devices, threads, names = _torch(problems)
    _torchvision(problems)
    return DoctorResult(
        python=platform.python_version(),
        platform=platform.platform(),
        versions=versions,
        extras={extra: all(map(importlib.util.find_spec, modules)) for extra, modules in _EXTRAS.items()},
        devices=devices,
        threads=threads,
        models=names,
        problems=problems,
    )


def _torch(problems: list[str]) -> tuple[list[str], int, list[str]]:
    try:
        import torch

        from bnprune.models.zoo import ZOO
        from bnprune.runs.directory import processor
    except Exception as error:  # noqa: BLE001 - every failure is a problem to report
        problems.append(f"torch cannot be imported: {type(error).__name__}: {error}")
        return [], 0, []
    accelerators = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [processor(), *accelerators], torch.get_num_threads(), list(ZOO)


def _torchvision(problems: list[str]) -> None:
    try:
        import torchvision  # noqa: F401
    except Exception as error:  # noqa: BLE001 - as above
        problems.append(explain(error))
    else:
        problems += _mismatch()


def _mismatch() -> list[str]:
    """Return a problem if torchvision was built for another version of torch than the installed one."""
    try:
        needs = [_NEED.match(need) for need in metadata.requires("torchvision") or ()]
        installed = metadata.version("torch").partition("+")[0]
    except metadata.PackageNotFoundError:
        return []
    for need in filter(None, needs):
        relation, wanted = need.groups()
        if installed != wanted if relation == "==" else _numbers(installed) < _numbers(wanted):
            name = f"torchvision {metadata.version('torchvision')}"
            return [f"{name} was built for torch {relation} {wanted}, not {installed}. {_REINSTALL}"]
    return []


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def explain(error: Exception) -> str:
    """Return a message about an error while importing torchvision, with its cause if that is known."""
    text = f"torchvision cannot be imported: {type(error).__name__}: {error}"
    if _MISMATCH in str(error):
        text += (
            ". Its binary was built for another torch: a CPU-only torch ('+cpu') beside a torchvision from PyPI, or "
            f"versions that were not released together. {_REINSTALL}"
        )
    return text
