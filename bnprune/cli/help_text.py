"""The help of the program and of its verbs, in one style: plain text, without rich, whose import takes long.

Paragraphs are wrapped once, to the width of the terminal; examples stand on lines of their own, to be copied.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from typer.core import TyperCommand

_WIDEST = 100
"""Longer lines are hard to read."""
_NARROWEST = 40
_NAMES = 30
"""Most columns for the names of options. Longer names have their description on the next line."""
_NO_PANEL = "Options"


class Verb(TyperCommand):
    """A verb whose help is written by this module."""

    def collect_usage_pieces(self, _: Any) -> list[str]:
        """Return the arguments and options of the usage line: `CONFIG [KEY=VALUE]... [OPTIONS]`."""
        arguments = [parameter for parameter in self.params if parameter.param_type_name == "argument"]
        return [*map(_argument, arguments), "[OPTIONS]"]

    def format_help(self, context: Any, formatter: Any) -> None:
        """Write the help of the verb."""
        summary, _, rest = (self.help or "").partition("\n\n")
        usage = " ".join([context.command_path, *self.collect_usage_pieces(context)])
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            if parameter.param_type_name == "argument":
                sections.setdefault("Arguments", []).append((_argument(parameter), _described(parameter)))
            elif not getattr(parameter, "hidden", False):
                panel = getattr(parameter, "rich_help_panel", None) or _NO_PANEL
                sections.setdefault(panel, []).append((_flags(parameter), _described(parameter)))
        order = sorted(sections, key=lambda name: name == _NO_PANEL)  # that of --help goes last
        blocks = [*_paragraphs(summary), *_paragraphs(rest)]
        formatter.write(_joined(usage, blocks, [(name, sections[name]) for name in order], self.epilog or ""))


def write_program_help(group: Any, context: Any, formatter: Any, panels: dict[str, list[str]]) -> None:
    """Write the help of the program: its verbs by panel, each with the first sentence of its help."""
    sections = [
        (title, [(name, _sentence(group.commands[name].help)) for name in names]) for title, names in panels.items()
    ]
    options = [(_flags(option), _described(option)) for option in group.get_params(context)]
    usage = f"{context.command_path} COMMAND [ARGUMENTS] [OPTIONS]"
    blocks = [*_paragraphs(group.help or "")]
    formatter.write(_joined(usage, blocks, [*sections, (_NO_PANEL, options)], group.epilog or ""))


def _joined(usage: str, blocks: list[str], sections: Iterable[tuple[str, list[tuple[str, str]]]], example: str) -> str:
    width = max(min(shutil.get_terminal_size().columns, _WIDEST), _NARROWEST)
    parts = [_wrapped(f"Usage: {usage}", width, 7), *(_wrapped(block, width) for block in blocks)]
    sections = list(sections)
    names = [len(name) + 4 for _, entries in sections for name, _ in entries]
    margin = max((length for length in names if length <= min(_NAMES, width // 2)), default=_NAMES)
    parts += [
        f"{title}:\n" + "\n".join(_entry(*entry, margin, width) for entry in entries) for title, entries in sections
    ]
    if example:
        title, _, lines = example.partition(":")
        parts.append("\n".join([f"{title}:", *(f"  {line.strip()}" for line in lines.strip().splitlines())]))
    return "\n\n".join(parts) + "\n"


def _entry(name: str, text: str, margin: int, width: int) -> str:
    wrapped = _wrapped(text, width - margin).splitlines() or [""]
    first = f"  {name}"
    lines = [first] if len(first) + 2 > margin else [first.ljust(margin) + wrapped.pop(0)]
    return "\n".join([*lines, *(" " * margin + line for line in wrapped)])


def _wrapped(text: str, width: int, indent: int = 0) -> str:
    return textwrap.fill(text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def _paragraphs(text: str) -> Iterator[str]:
    """Yield paragraphs without the line breaks that they have in the source."""
    for paragraph in text.split("\n\n"):
        if words := paragraph.split():
            yield " ".join(words)


def _sentence(text: str | None) -> str:
    return next(_paragraphs(text or ""), "")


def _argument(parameter: Any) -> str:
    """Return an argument as in a usage line: `CONFIG`, `[SOURCE]`, `RUN...`."""
    name = str(parameter.metavar or parameter.name.upper()).replace("...", "").strip("[]{}")
    return (name if parameter.required else f"[{name}]") + ("..." if parameter.nargs == -1 else "")


def _flags(parameter: Any) -> str:
    """Return the names of an option, the short one first, and its value."""
    names = ", ".join(sorted(parameter.opts, key=len))
    names += "".join(f" / {name}" for name in parameter.secondary_opts)
    return names if parameter.is_flag else f"{names} {parameter.metavar or 'NAME'}"


def _described(parameter: Any) -> str:
    """Return the help of a parameter with its default, unless the help names it."""
    text = " ".join((parameter.help or "").split())
    if parameter.secondary_opts:
        return f"{text} [default: {'on' if parameter.default else 'off'}]"
    default = parameter.default if parameter.show_default and not parameter.required else None
    if default in (None, False, True) or "efault" in text:
        return text
    return f"{text} [default: {default}]"
