"""The wheel and the sdist hold the package, the recipes and nothing else; the version is written in one place."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import bnprune

ROOT = Path(__file__).parent.parent.parent


def check(*archives: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "check_dist.py"), *map(str, archives)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A wheel and an sdist of this tree."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True, capture_output=True
    )
    return sorted(folder.iterdir())


def test_a_wheel_and_an_sdist_hold_what_they_should(built: list[Path]) -> None:
    assert [path.suffix for path in built] == [".whl", ".gz"]
    checked = check(*built)
    assert checked.returncode == 0, checked.stderr


def test_a_missing_and_a_stray_file_are_named(built: list[Path], tmp_path: Path) -> None:
    wheel = tmp_path / built[0].name
    with zipfile.ZipFile(built[0]) as source, zipfile.ZipFile(wheel, "w") as target:
        for name in source.namelist():
            if name != "bnprune/py.typed":
                target.writestr(name, source.read(name))
        target.writestr("tests/test_nothing.py", "")
    checked = check(wheel)
    assert checked.returncode == 1
    assert checked.stderr.splitlines() == [
        f"{wheel.name}: bnprune/py.typed is missing",
        f"{wheel.name}: tests/test_nothing.py does not belong there",
    ]


def test_the_version_is_written_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert "version" not in project["project"]
    home = ROOT / project["tool"]["hatch"]["version"]["path"]
    holders = [
        path for path in (ROOT / "bnprune").rglob("*.py") if f'"{bnprune.__version__}"' in path.read_text("utf-8")
    ]
    assert holders == [home]


def test_continuous_integration_calls_scripts_that_exist() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    called = {word for word in workflow.split() if word.startswith("scripts/")}
    assert {"scripts/test", "scripts/check_dist.py"} <= called
    for name in called:
        assert (ROOT / name).is_file(), name


def test_the_oldest_versions_tested_are_the_oldest_allowed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    allowed = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(project["dependencies"]), re.MULTILINE))
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)\.\*$", (ROOT / ".github" / "oldest.txt").read_text(), re.MULTILINE))
    assert pins.keys() >= {"torch", "torchvision", "typer", "pydantic"}
    assert pins == {name: allowed[name] for name in pins}


def test_contributing_names_files_that_exist() -> None:
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = re.findall(r"`((?:bnprune|scripts|tests|configs)/[\w./-]*)`", text)
    assert len(names) > 30
    missing = [name for name in names if not (ROOT / name).exists()]
    assert not missing
    for package in (path.parent.name for path in (ROOT / "bnprune").glob("*/__init__.py")):
        assert f"| `bnprune/{package}` |" in text, package
