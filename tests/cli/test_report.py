"""`bnprune report`: the page and the images, of runs that are finished, unfinished, damaged, or oddly named."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bnprune.reporting.compare import headline
from bnprune.reporting.figures import Axis
from bnprune.reporting.page import _about_gammas
from bnprune.reporting.pictures import save_pictures
from bnprune.reporting.run_data import Gammas, RunData, Stage, read_run_data
from bnprune.reporting.sections import _threshold_note
from tests.cli.harness import bnprune, contents, document, done, refusal, squeezed, write

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'


@pytest.fixture
def copy(run: Path, here: Path) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(run, here / "copy"))


def page(*args: object) -> str:
    done("report", *args, "--out", "page.html", "--force")
    return Path("page.html").read_text(encoding="utf-8")


def test_a_run_ends_with_its_report(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    assert f"<h1>{run.name}</h1>" in text
    for heading in (
        "Stage by stage",
        "Scale factors",
        "Channels per layer",
        "Pruning",
        "Configuration and environment",
    ):
        assert f"<h2>{heading}</h2>" in text


def test_the_page_of_a_run_goes_into_the_run_and_is_made_anew(copy: Path) -> None:
    (copy / "report.html").write_text("old")
    assert f"Wrote {copy / 'report.html'}" in done("report", copy).stdout
    assert (copy / "report.html").read_text(encoding="utf-8") == page(copy)


def test_the_page_asks_nothing_of_the_network_and_runs_nothing(run: Path) -> None:
    text = page(run)
    assert "<script" not in text
    assert set(re.findall(r"""(?:src|href|url|import)\s*[=(]\s*["']?([^"'>]*)""", text)) == {"data:,"}
    assert "default-src 'none'" in text.replace("&#x27;", "'")


def test_names_are_escaped(copy: Path) -> None:
    """Whatever a run may hold: its folder, its recipe, its layers, its refusals, its environment."""
    evil = copy.rename(copy.with_name(HOSTILE.replace("/", "⁄")))
    config = (evil / "config.yaml").read_text()
    (evil / "config.yaml").write_text(config.replace("name: mlp", f"name: '{HOSTILE}'"))
    result = json.loads((evil / "result.json").read_text())
    cut = result["stages"]["prune"]
    cut["layers"][0]["name"] = HOSTILE
    cut["refusals"] = [{"site": HOSTILE, "reason": HOSTILE, "fix": HOSTILE}] * 9
    cut["notes"], cut["target"]["kind"] = [HOSTILE], HOSTILE
    cut["recovery"]["chosen"], cut["recovery"]["validation"] = HOSTILE, {HOSTILE: 0.5}
    result["stages"][f'odd" {HOSTILE}'] = cut
    result["inputs"]["classes"] = [HOSTILE]
    (evil / "result.json").write_text(json.dumps(result))
    environment = json.loads((evil / "env.json").read_text())
    (evil / "env.json").write_text(
        json.dumps({**environment, "argv": [HOSTILE], "processor": HOSTILE, "time": HOSTILE})
    )
    for text in (page(evil), page(evil, shutil.copytree(evil, "other"))):
        assert "<script" not in text
        assert "<img" not in text
        assert text.count("&lt;script&gt;alert(&quot;x&quot;)") > 10


def section_of(text: str, title: str) -> str:
    """Return a section of a page."""
    return text.split(f"<h2>{title}</h2>")[1].split("</section>")[0]


def test_the_page_says_how_images_become_inputs_and_names_the_classes(copy: Path) -> None:
    result = json.loads((copy / "result.json").read_text())
    found = section_of(page(copy), "Inputs and classes")
    assert "<dd>resize to 16×16, pixel values between 0 and 1</dd>" in found
    mean, std = (result["inputs"][key][0] for key in ("mean", "std"))
    assert f"<dt>mean</dt><dd>({mean:.4f}), subtracted</dd>" in found
    assert f"<dt>standard deviation</dt><dd>({std:.4f}), divided by</dd>" in found
    assert re.findall(r"<li>(.*?)</li>", found) == [str(digit) for digit in range(10)]
    assert "<details" not in found
    result["inputs"] |= {"classes": [f"kind {number}" for number in range(1000)], "crop": True, "size": [224, 224]}
    (copy / "result.json").write_text(json.dumps(result))
    found = section_of(page(copy), "Inputs and classes")
    assert "resize the shorter side to 256, crop 224×224 from the middle" in found
    assert "<details><summary>1000 classes, in the order of the scores</summary>" in found
    result["inputs"] = None
    (copy / "result.json").write_text(json.dumps(result))
    assert "Inputs and classes" not in page(copy)


def test_runs_are_compared(run: Path, recipe: Path, here: Path) -> None:
    done("run", recipe, "prune.ratio=0.25", "train.epochs=1", "--out", "gentle")
    text = page(run, "gentle")
    assert "<h2>Side by side</h2>" in text
    cells = "".join(rf'<td data-label="{name}">(.*?)</td>' for name in (run.name, "gentle"))
    differing = re.findall(rf"<code>([a-z._]+)</code></th>{cells}", text)
    assert ("prune.ratio", "0.5", "0.25") in differing
    assert ("train.epochs", "2", "1") in differing
    assert len(differing) == 2
    found = document("report", run, "gentle", "--force")
    assert found["schema"] == "bnprune.report/1"
    assert found["out"] == "report.html"
    assert found["runs"]["gentle"] == json.loads((here / "gentle/result.json").read_text())["stages"]


def test_several_runs_do_not_overwrite_a_file_unasked(run: Path, copy: Path) -> None:
    write("report.html", "mine")
    assert "'report.html' exists" in refusal(2, "report", run, copy)


def test_runs_of_one_name_are_told_apart(run: Path, here: Path) -> None:
    shutil.copytree(run, here / "a" / run.name)
    assert document("report", run, f"a/{run.name}")["runs"].keys() == {str(run), f"a/{run.name}"}


def test_an_unfinished_run_has_a_report(recipe: Path, here: Path) -> None:
    done("train", recipe, "--out", "half")
    text = page("half")
    assert "Nothing was pruned yet." in text
    assert "Validation accuracy" in text
    (here / "half/result.json").unlink()
    with (here / "half/metrics.jsonl").open("a") as file:
        file.write('{"stage": "train", "ep')
    text = page("half")
    assert "No stage of this run is finished yet." in text
    assert "a line that is not complete" in text


def test_a_run_without_a_baseline_or_sparsity_has_a_report(recipe: Path) -> None:
    done("run", recipe, "train.sparsity.penalty=none", "baseline=true", "prune.passes=2", "--out", "two")
    text = page("two")
    assert "pruned 2" in text
    assert "dense" in text


@pytest.mark.parametrize("name", ["result.json", "env.json", "config.yaml", "plan.json", "gamma.safetensors"])
@pytest.mark.parametrize(
    "content", ['{"stages": {"train": {}', '{"stages": {"train": {"accuracy": []}}}', "[1, 2]", "\x00"]
)
def test_a_damaged_file_is_named(copy: Path, name: str, content: str) -> None:
    if name == "env.json" and content.startswith('{"stages": {"train": {"a'):
        pytest.skip("valid, if useless")
    if name == "config.yaml" and content.startswith('{"stages": {"train": {"a'):
        pytest.skip("valid, if useless")
    (copy / name).write_text(content)
    assert f"'{copy / name}' is damaged" in refusal(5, "report", copy)


@pytest.mark.parametrize(
    "content", ['{"accelerators": 3}', '{"accelerators": {"a": 1}}', '{"argv": 3}', '{"versions": [1]}']
)
def test_a_malformed_environment_is_named(copy: Path, content: str) -> None:
    (copy / "env.json").write_text(content)
    assert f"'{copy / 'env.json'}' is damaged" in refusal(5, "report", copy)


def test_what_is_not_a_run_is_refused(here: Path) -> None:
    assert "is not a run directory" in refusal(2, "report", "nowhere")
    assert "is not a run directory" in refusal(2, "report", here)
    assert "Missing argument 'RUN...'" in refusal(2, "report")


def test_a_report_that_fails_does_not_fail_the_run(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnprune.errors import DataError
    from bnprune.workflows import report as reports

    def full(path: Path, text: str) -> None:
        raise DataError(f"'{path}' cannot be written: no space left on device.")

    monkeypatch.setattr(reports, "write_text", full)
    result = bnprune("run", recipe, "--out", "run")
    assert result.exit_code == 0
    assert "note: no report was written: 'run/report.html' cannot be written" in result.stderr


def test_gammas_and_what_went_of_them_are_those_of_the_checkpoints(run: Path) -> None:
    """Against the files: what the cut left of γ is what the story says was not removed."""
    run_data = read_run_data(run)
    before, trained = run_data.gammas
    assert before.title == "before training"
    assert bool((before.values == 1).all())
    [name] = load_file(run / "gamma.safetensors")
    dense, slim = (load_file(run / "checkpoints" / f"{stage}.safetensors")[name] for stage in ("train", "prune"))
    assert torch.equal(trained.values, dense.abs().double())
    assert trained.removed is not None
    assert torch.equal(dense[~trained.removed], slim)
    assert trained.threshold == float(dense.abs()[trained.removed].max())
    assert trained.threshold <= float(slim.abs().min())


def test_the_page_names_every_layer_in_order_and_those_that_lost_most(run: Path) -> None:
    text = page(run)
    listed = text.partition('<ol class="layers cut">')[2].partition("</ol>")[0]
    found = re.findall(r'class="name">([^<]*)<.*?(\d+) → <b>(\d+)</b>.*?class="lost">([^<]*)<', listed)
    layers = read_run_data(run).layers
    assert [(name, int(before), int(after)) for name, before, after, _ in found] == [
        (layer.name, layer.before, layer.after) for layer in layers
    ]
    assert [lost for *_, lost in found] == [
        f"−{1 - layer.after / layer.before:.0%}" if layer.after < layer.before else "" for layer in layers
    ]
    most = max(layers, key=lambda layer: 1 - layer.after / layer.before)
    assert f"Cut most: <code>{most.name}</code> (−" in text
    assert f'<li class=most><span class="name">{most.name}</span>' in listed


def test_channels_left_of_the_threshold_that_stayed_are_explained() -> None:
    values, removed = torch.tensor([0.1, 0.2, 0.3, 0.4]).double(), torch.tensor([True, False, True, False])
    coupled = Gammas("trained", values, removed)
    assert (coupled.threshold, coupled.kept_below) == (float(values[2]), 1)
    assert "1 channel left of it stayed: channels that several layers share" in _threshold_note(coupled)
    assert "stayed" not in _threshold_note(Gammas("trained", values, values < 0.25))


def test_the_page_names_a_criterion_other_than_gamma(run: Path) -> None:
    data = read_run_data(run)
    assert data.criterion == "gamma"
    assert "Channels are ranked by |γ|" in _about_gammas(data)
    other = _about_gammas(replace(data, criterion="<activation>"))
    assert "ranked channels by the criterion '&lt;activation&gt;' instead of |γ|" in other
    assert "Channels are ranked by |γ|" not in other


def test_a_comparison_says_which_run_is_best(run: Path) -> None:
    data = read_run_data(run)
    assert data.final is not None

    def ending(name: str, accuracy: float | None, macs: int) -> RunData:
        figures = data.final.figures.model_copy(update={"accuracy": accuracy, "macs": macs})  # type: ignore[union-attr]
        return replace(data, name=name, stages=(Stage("finetune", figures),))

    small, large, unknown = ending("small & fast", 0.9, 1000), ending("large", 0.95, 2000), ending("none", None, 10)
    assert headline([small, large]) == (
        "<b>large</b> ends at 95.00% with 2.00k MACs: the highest test accuracy. <b>small &amp; fast</b> ends at "
        "90.00% with 1.00k MACs: the fewest MACs, 2.0 times fewer, at −5.00 points."
    )
    assert headline([small, ending("worse", 0.8, 3000)]).startswith("<b>small &amp; fast</b>")
    assert headline([small, ending("worse", 0.8, 3000)]).endswith("the fewest MACs of these runs.")
    assert headline([small, unknown]).startswith("Fewer than two")


def test_widths_behind_gates_are_those_of_the_last_network(recipe: Path) -> None:
    """In the second pass a gated BatchNorm has another name; its channels are counted all the same."""
    net = ("model.name=resnet20", "model.kwargs={in_channels: 1}")
    cut = ("prune.coupling=gates", "prune.passes=2", "prune.min_channels=4")
    few = ("train.epochs=1", "data.limit=50", "data.batch_size=25", "prune.recalibrate=0")
    done("run", recipe, *net, *cut, *few, "--out", "gated")
    run_data = read_run_data(Path("gated"))
    assert run_data.gated
    assert run_data.final is not None
    assert sum(layer.before for layer in run_data.layers) == run_data.stages[0].figures.channels == 688
    assert sum(layer.after for layer in run_data.layers) == run_data.final.figures.channels


def test_gammas_of_another_network_are_left_out(copy: Path) -> None:
    [name] = load_file(copy / "gamma.safetensors")
    save_file({name: torch.ones(7)}, copy / "gamma.safetensors")
    assert [gammas.removed for gammas in read_run_data(copy).gammas] == [None]


def test_pictures(run: Path, here: Path) -> None:
    found = document("report", run, "--plots", "plots", "--out", "page.html")
    names = {
        f"{name}.{ending}"
        for name in ("overview", "accuracy", "gamma", "layers", "training")
        for ending in ("png", "svg")
    }
    assert {path.removeprefix("plots/") for path in found["plots"]} == names
    for name in names:
        start = (here / "plots" / name).read_bytes()[:5]
        assert start == (b"\x89PNG\r" if name.endswith("png") else b"<?xml")
    before = contents(here / "plots")
    done("report", run, "--plots", "plots", "--out", "page.html", "--force")
    assert contents(here / "plots") == before


def test_pictures_do_not_replace_anything_unasked(run: Path, here: Path) -> None:
    (here / "plots").mkdir()
    write("plots/training.svg", "mine")
    message = refusal(2, "report", run, "--plots", "plots", "--out", "page.html")
    assert "--plots: 'plots/training.svg' exists. Choose another folder, or overwrite it: --force." in message
    (here / "plots/training.svg").unlink()
    (here / "plots/gamma.png").mkdir()
    assert "'plots/gamma.png' is a folder" in refusal(
        5, "report", run, "--plots", "plots", "--out", "page.html", "--force"
    )


def test_pictures_that_fail_leave_what_was_there(run: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def full(canvas: Figure, path: Path, **_: object) -> None:
        Path(path).write_text("half of a pic")
        raise OSError(28, "No space left on device")

    (here / "plots").mkdir()
    write("plots/overview.png", "before")
    monkeypatch.setattr(Figure, "savefig", full)
    result = bnprune("report", run, "--plots", "plots", "--out", "page.html", "--force")
    assert result.exit_code == 5
    assert "--plots: 'plots/overview.png' cannot be written: No space left" in squeezed(result.stderr)
    assert contents(here / "plots") == {"overview.png": b"before"}


def test_pictures_of_names_that_become_alike(run: Path, here: Path) -> None:
    runs = [replace(read_run_data(run), name=name) for name in ("a b", "a/b", "A_b-2")]
    written = save_pictures(runs, here / "plots")
    assert len(set(written)) == len(written)
    names = {path.name for path in written}
    assert {"a_b-overview.png", "a_b-2-overview.png", "A_b-2-2-overview.png"} <= names


def test_pictures_of_odd_names(run: Path, here: Path) -> None:
    """A $ would start mathematics in matplotlib, a slash another folder."""
    runs = [replace(read_run_data(run), name=name) for name in ("$x_{1$", "a/../b <i>")]
    written = {path.name for path in save_pictures(runs, here / "plots")}
    assert {"_x__1_-overview.png", "a_.._b__i_-gamma.svg", "comparison.png"} <= written
    assert written == {path.name for path in (here / "plots").iterdir()}


def test_a_folder_that_cannot_be_written_is_named(run: Path) -> None:
    write("file", "")
    result = bnprune("report", run, "--out", "page.html", "--plots", "file")
    assert result.exit_code == 5
    assert "--plots: 'file/" in result.stderr


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1.04, [0, 0.25, 0.5, 0.75, 1]),
        (0.965, 1.005, [0.97, 0.98, 0.99, 1.0]),
        (1, 30, [10, 20, 30]),
        (0, 3, [0, 1, 2, 3]),
    ],
)
def test_ticks_are_round_and_within(low: float, high: float, expected: list[float]) -> None:
    assert Axis("", low, high, str, whole=high == 3).ticks() == pytest.approx(expected)


def test_ticks_of_a_root_scale_have_room() -> None:
    places = sorted(tick**0.5 for tick in Axis("", 0, 1500, str, root=True).ticks())
    assert places[-1] == 1000**0.5
    assert min(b - a for a, b in itertools.pairwise(places)) >= 0.09 * 1500**0.5


# -- figures that cannot be, and files of the wrong kind --------------------------------------------------------------

WRONG = {
    "infinite": "1e999",
    "huge": "1" + "0" * 400,
    "large": "1e308",
    "negative": "-1",
    "text": '"x"',
    "list": "[[]]",
    "boolean": "true",
    "nan": "NaN",
}


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("key", ["accuracy", "macs", "latency_ms"])
def test_a_figure_that_cannot_be_is_a_damaged_file(key: str, value: str, copy: Path) -> None:
    text = (copy / "result.json").read_text()
    (copy / "result.json").write_text(re.sub(f'"{key}": [0-9.e-]+', f'"{key}": {value}', text))
    assert "result.json' is damaged: " in refusal(5, "report", copy)


NESTED = "[" * 100 + "]" * 100


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", f'{{"stages": {{}}, "a": {NESTED}}}'),
        ("result.json", "[" * 100_000),
        ("result.json", "[]"),
        ("result.json", '{"stages": [1]}'),
        ("result.json", '{"stages": {"train": 3}}'),
        ("env.json", f'{{"a": {NESTED}}}'),
        ("env.json", '{"argv": 3}'),
        ("metrics.jsonl", '{"epoch": 1, "stage": "train", "train": {"loss": -1}}'),
        ("metrics.jsonl", "[1]"),
        ("config.yaml", f"a: {NESTED}"),
        ("config.yaml", "a: &a [*a]"),
        ("config.yaml", "1"),
        ("config.yaml", "a: ]"),
    ],
    ids=lambda text: text[:20],
)
def test_a_file_of_the_wrong_kind_is_a_damaged_file(name: str, content: str, copy: Path) -> None:
    (copy / name).write_text(content)
    assert f"{name}' is damaged: " in refusal(5, "report", copy)


def test_losses_that_are_huge_or_missing_are_drawn_as_far_as_they_can_be(copy: Path) -> None:
    """A training may diverge before it ends."""
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    for line, loss in zip((line for line in lines if "epoch" in line), (1e38, None, 1e99), strict=False):
        line["train"]["loss"] = loss
    (copy / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done("report", copy, "--plots", "plots")
    page = (copy / "report.html").read_text()
    assert all(len(number) < 12 for points in re.findall('points="([^"]*)"', page) for number in points.split(","))


def test_scale_factors_that_are_not_finite_have_no_histogram(copy: Path) -> None:
    [name] = load_file(copy / "gamma.safetensors")
    save_file({name: torch.full((32,), torch.inf)}, copy / "gamma.safetensors")
    done("report", copy)
    assert "some scale factors are not finite" in (copy / "report.html").read_text()


@pytest.mark.parametrize("gammas", [{}, {"a": torch.ones(0)}, {"a": torch.ones(3, dtype=torch.bool)}], ids=str)
def test_scale_factors_of_no_use_are_no_bug(gammas: dict[str, torch.Tensor], copy: Path) -> None:
    save_file(gammas, copy / "gamma.safetensors")
    assert bnprune("report", copy).exit_code in (0, 5)


def test_text_of_a_run_is_text_on_the_page(copy: Path) -> None:
    result = json.loads((copy / "result.json").read_text())
    evil = '"><script>alert(1)</script><a href="javascript:x">\x1b[2J\u202e'
    result["stages"][evil] = result["stages"].pop("prune") | {"skipped": evil}
    result["stages"][evil]["layers"][0]["name"] = evil
    result["stages"][evil]["notes"] = [evil]
    (copy / "result.json").write_text(json.dumps(result))
    done("report", copy, "--plots", "plots")
    page = (copy / "report.html").read_text()
    assert "<script" not in page
    assert "<a " not in page
    assert r"\x1b[2J\u202e" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page)


def test_a_report_that_cannot_be_drawn_does_not_fail_the_run(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("no luck")

    monkeypatch.setattr("bnprune.workflows.report.render", broken)
    result = bnprune("train", recipe, "--out", "run", "train.epochs=1")
    assert result.exit_code == 0
    assert "note: no report was written: no luck" in result.stderr
