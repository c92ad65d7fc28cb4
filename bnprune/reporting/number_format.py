"""Numbers formatted for people."""

from __future__ import annotations

MISSING = "–"


def count(number: float) -> str:
    """Write a count: 853, 853.00k, 20.04M, 4.09G."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.2f}{unit}"
    return f"{number:.0f}"


def plural(number: int, noun: str) -> str:
    """Write a number of things: 1 image, 512 images."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def percent(share: float, digits: int = 2) -> str:
    """Write a share: 99.44%."""
    return f"{share:.{digits}%}"


def percent_since(share: float, before: float | None) -> str:
    """Write a share after training, and before it if that is known: 99.44% (before training: 87.50%)."""
    return percent(share) if before is None else f"{percent(share)} (before training: {percent(before)})"


def milliseconds(value: float) -> str:
    """Write a latency: 0.93 ms, 12.4 ms, 230 ms."""
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def megabytes(size: float) -> str:
    """Write the size of a file: 9.26 MB."""
    return f"{size / 1e6:.2f} MB"


def duration(seconds: float) -> str:
    """Write a duration: 4.2 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def factor(before: float, after: float) -> str:
    """Write how many times smaller a number became: ÷ 10.9."""
    return f"÷ {before / after:.1f}" if after else MISSING
