"""The report of the digits run, opened in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, find_browser

needs_browser = pytest.mark.skipif(find_browser() is None, reason="there is no Chromium here")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_browser()
    assert program is not None
    with Browser(program) as browser:
        yield browser


class Figures(HTMLParser):
    """Collects <data data-at="where" value="exact">written</data>."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, Any, str]] = []
        self._open: dict[str, str | None] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = dict(attrs) if tag == "data" else None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.found.append((self._open["data-at"] or "", json.loads(self._open["value"] or ""), data))
            self._open = None


def look_up(run: Path, at: str) -> Any:
    name, *keys = at.split("/")
    assert name == run.name
    value: Any = json.loads((run / "result.json").read_text())
    for key in keys:
        value = value[key]
    return value


def as_written(key: str, value: float) -> str:
    """What a person should read; written again here, by other means."""
    if "accuracy" in key:
        return f"{round(value * 100, 2):.2f}%"
    if key in ("params", "macs"):
        power, unit = next((p, u) for p, u in ((9, "G"), (6, "M"), (3, "k"), (0, "")) if value >= 10**p)
        return f"{round(value / 10**power, 2):.2f}{unit}" if power else str(value)
    if key == "file_bytes":
        return f"{round(value / 1e6, 2):.2f} MB"
    return str(value) if key == "channels" else ""


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 800, 1280])
def test_the_page_opens_quietly_and_fits(digits: Path, browser: Browser, width: int, dark: bool) -> None:
    browser.open(digits / "report.html", width=width, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == [(digits / "report.html").resolve().as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(19, 20, 22)") is dark
    assert browser.evaluate("document.querySelectorAll('svg.chart').length") >= 5
    assert browser.evaluate("document.querySelector('h1').textContent") == digits.name
    assert browser.evaluate("document.scripts.length") == 0


@needs_browser
def test_its_figures_are_those_of_the_result(digits: Path, browser: Browser) -> None:
    browser.open(digits / "report.html")
    figures = Figures(browser.evaluate("document.documentElement.outerHTML")).found
    for at, value, written in figures:
        assert value == look_up(digits, at), at
        expected = as_written(at.rpartition("/")[2], value)
        assert not expected or written == expected
    stages = json.loads((digits / "result.json").read_text())["stages"]
    keys = ("accuracy", "validation_accuracy", "params", "macs", "channels", "latency_ms", "file_bytes", "seconds")
    assert {at for at, _, _ in figures} == {f"{digits.name}/stages/{stage}/{key}" for stage in stages for key in keys}


@needs_browser
def test_the_browser_would_tell(browser: Browser, tmp_path: Path) -> None:
    """A page that does what a report must not do is caught: these tests can fail."""
    page = tmp_path / "page.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('no')</script><p style='width:2000px'>x")
    browser.open(page, width=390)
    assert "http://127.0.0.1:9/x.png" in browser.requests()
    assert any("no" in complaint for complaint in browser.complaints())
    assert browser.evaluate("document.documentElement.scrollWidth") > 390
