"""Strings that others wrote, put into a card without changing what stands around them."""

import html
import re


_REPO = re.compile(r"[\w.-]+(/[\w.-]+)?")
_MARKUP = re.compile(r"([\\`*_\[\]|#~])")


def plain(text: object) -> str:
    """A string as one line of Markdown that shows it as it is: no markup, no HTML, no line break."""
    return _MARKUP.sub(r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def hub_link(name: str, kind: str = "") -> str:
    """A repository of the hub as a link; anything else as plain text. `kind` is `""` for a model or `"datasets/"`."""
    if not _REPO.fullmatch(name):
        return plain(name)
    return f"[{plain(name)}](https://huggingface.co/{kind}{name})"


def fence(text: str) -> str:
    """A fence of backticks that nothing in the text closes."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))


def table(heads: list[str], rows: list[list[str]], numbers: bool = True) -> str:
    """A table of cells that are plain; right-aligned after the first column if they are numbers."""
    lines = [heads, ["---"] + ["---:" if numbers else "---"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
