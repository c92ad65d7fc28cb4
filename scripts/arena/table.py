"""The table of the arena in Markdown, made from the documents of cells and from nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from arena.arms import ARMS, BASES
from arena.cells import NETWORKS, SHARES
from arena.comparison import Document, difference, of_arm, values

BEGIN, END = "<!-- table: made by scripts/arena.py table -->\n", "<!-- end of table -->"
FINAL = ("accuracy", "finetuned", "test")
_COLUMNS = (
    *("arm", "seeds", "MACs", "parameters", "after the cut", "recalibrated", "recovered", "validation", "test"),
    *("against default", "", "epochs", "prune, s", "eager 1 / 32, ms", "ONNX 1 / 32, ms"),
)


def replaced(text: str, table: str) -> str:
    """Return the text of README.md with another table between its markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit("README.md: the markers of the table are missing")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def table(documents: Sequence[Document]) -> str:
    """Return all tables."""
    networks = [name for name in NETWORKS if any(document["cell"]["network"] == name for document in documents)]
    if not networks:
        return "No cell has been run yet.\n"
    return "\n".join([*_made(documents), *(line for name in networks for line in _network(documents, name))]) + "\n"


def _made(documents: Sequence[Document]) -> Iterator[str]:
    """Yield what the figures were made with."""
    made = [document["environment"] for document in documents]
    dirty = sum(environment["dirty"] for environment in made)
    commits = sorted({str(environment["commit"])[:12] for environment in made})
    dates = sorted(environment["date"] for environment in made)
    yield f"{len(documents)} cells, {dates[0]} to {dates[-1]}."
    yield f"Commits: {', '.join(commits)}" + (f"; {dirty} cells from a changed work tree." if dirty else ".")
    yield "Processors: " + "; ".join(sorted({f"{e['processor']}, {e['cores']} cores" for e in made})) + "."
    packages = sorted({f"{name} {version}" for e in made for name, version in e["versions"].items()})
    yield f"Versions: {', '.join(packages)}."
    yield "Commands:"
    yield ""
    yield from (f"    {command}" for command in sorted({environment["command"] for environment in made}))
    yield ""


def _network(documents: Sequence[Document], network: str) -> Iterator[str]:
    yield from (f"## {network}", "", f"![Accuracy after fine-tuning]({network}.svg)", "")
    yield from _lines(("network", "seeds", "MACs", "parameters", "validation", "test", "epochs"))
    for base, about in BASES.items():
        found = of_arm(documents, network, base, None)
        if found:
            sizes = [f"{statistics.mean(values(found, key, 'after')):,.0f}" for key in ("macs", "params")]
            scores = [_percent(values(found, "accuracy", "trained", split)) for split in ("validation", "test")]
            yield _row([f"{base}: {about}", _seeds(found), *sizes, *scores, _number(found, "epochs", "{:.0f}")])
    yield ""
    for share in SHARES:
        default = of_arm(documents, network, "default", share)
        yield from (f"### {network}, {share:.0%} of the MACs", "")
        yield from _lines(_COLUMNS)
        for arm in ARMS:
            found = of_arm(documents, network, arm, share)
            yield _row(_arm(arm, found, default)) if found else _row([arm, "not run", *[""] * (len(_COLUMNS) - 2)])
        yield from ("", *_verdicts(documents, network, share), "")


def _arm(arm: str, found: Sequence[Document], default: Sequence[Document]) -> list[str]:
    failed = [str(document["failed"]) for document in found if "failed" in document]
    against, verdict = _against(arm, found, default)
    cells = [
        arm,
        _seeds(found) + (f"; not reached by {len(failed)}" if failed else ""),
        _number(found, "macs", "share", "{:.1%}"),
        _number(found, "params", "after", "{:,.0f}"),
        *(_percent(values(found, "accuracy", when, "test")) for when in ("cut", "recalibrated", "recovered")),
        _percent(values(found, "accuracy", "finetuned", "validation")),
        _percent(values(found, *FINAL)),
        against,
        verdict,
        _number(found, "epochs", "{:.0f}"),
        _number(found, "seconds", "prune", "{:.2f}"),
    ]
    for backend in ("eager", "onnxruntime"):
        times = [_number(found, "latency", f"{backend}-{batch}", "ms", "{:.2f}") for batch in (1, 32)]
        cells.append(" / ".join(times) if any(times) else "")
    return cells


def _against(arm: str, found: Sequence[Document], default: Sequence[Document]) -> tuple[str, str]:
    gap = None if arm == "default" else difference(found, default, *FINAL)
    if gap is None:
        return "", ""
    if gap.margin is None:
        return f"{100 * gap.mean:+.2f}", "one seed"
    return f"{100 * gap.mean:+.2f} ± {100 * gap.margin:.2f}", gap.verdict


def _verdicts(documents: Sequence[Document], network: str, share: float) -> Iterator[str]:
    """Yield which arms are significantly ahead of the default, and which behind it."""
    default = of_arm(documents, network, "default", share)
    found: dict[str, list[str]] = {"ahead": [], "behind": []}
    for arm in ARMS:
        gap = None if arm == "default" else difference(of_arm(documents, network, arm, share), default, *FINAL)
        if gap is not None and gap.verdict:
            found[gap.verdict].append(arm)
    for verdict, arms in found.items():
        word = "ahead of" if verdict == "ahead" else verdict
        yield f"Significantly {word} the default: {', '.join(arms) or 'none'}."


# -- cells of the table ------------------------------------------------------------------------------------------------


def _lines(columns: Sequence[str]) -> Iterator[str]:
    yield _row(columns)
    yield "|" + "---|" * len(columns)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _seeds(documents: Sequence[Document]) -> str:
    return ", ".join(str(document["cell"]["seed"]) for document in documents)


def _percent(numbers: Sequence[float]) -> str:
    """Return the mean in percent and, of several seeds, the standard deviation."""
    if not numbers:
        return ""
    spread = f" ± {100 * statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{100 * statistics.mean(numbers):.2f}{spread}"


def _number(documents: Sequence[Document], *keys: str) -> str:
    """Return the mean of a figure; the last key is the format."""
    numbers = values(documents, *keys[:-1])
    return keys[-1].format(statistics.mean(numbers)) if numbers else ""
