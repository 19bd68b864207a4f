"""The report of a comparison as Markdown, with its pictures next to it."""

import re
from collections.abc import Iterator
from pathlib import Path

from .content import Content, Page, Sample
from .html import write_html
from .plots import Plot, plots
from .sections import Section, sections
from .tables import Table


REPORT, PLOTS = "report", "plots"


def write_report(content: Content, folder: Path) -> list[Path]:
    """
    Writes `report.md` with its plots, and `report.html`, which needs no other file.

    Returns:
        `list[Path]`: The two reports.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if figures that were measured differently would have to be compared.
    """
    pictures = plots(content)
    parts = sections(content)
    (folder / PLOTS).mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        (folder / PLOTS / f"{picture.name}.svg").write_bytes(picture.svg)
    markdown = folder / f"{REPORT}.md"
    markdown.write_text(render_markdown(content, parts, pictures), encoding="utf-8")
    html = folder / f"{REPORT}.html"
    write_html(content, parts, pictures, html)
    return [markdown, html]


def render_markdown(content: Page, parts: list[Section], pictures: list[Plot]) -> str:
    """The report as one text."""
    by_name = {picture.name: picture for picture in pictures}
    blocks = [f"# {_inline(content.title)}"]
    for section in parts:
        blocks.append(f"## {section.title}")
        blocks += [_inline(text) for text in section.texts]
        blocks += [f"> **Note.** {_inline(text)}" for text in section.warnings]
        for table in section.tables:
            blocks.append(_table(table))
            blocks += [_inline(note) for note in table.notes]
        blocks += [f"![{by_name[name].title}]({PLOTS}/{name}.svg)" for name in section.plots if name in by_name]
        for number, sample in enumerate(section.samples, start=1):
            blocks += _sample(number, sample)
    return "\n\n".join(blocks) + "\n"


def _table(table: Table) -> str:
    def line(cells: list[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rows = [line([_inline(head) for head in table.head]), line(["---", *["--:"] * (len(table.head) - 1)])]
    for cells in table.rows:
        lines = [(cell.text, *cell.detail.splitlines()) for cell in cells]
        rows.append(line(["<br>".join(_inline(text) for text in texts if text) for texts in lines]))
    return "\n".join(rows)


def _sample(number: int, sample: Sample) -> Iterator[str]:
    yield f"### Prompt {number}"
    yield _fenced(sample.prompt)
    for name, completion in sample.completions.items():
        yield f"**{_inline(name)}**"
        yield _fenced(completion)


def _fenced(text: str) -> str:
    """As a code block that nothing in the text can end."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _inline(text: str) -> str:
    """Text that means nothing to Markdown or HTML but itself, code spans in it aside."""
    parts = re.split(r"(`[^`\n]*`)", text)
    escaped = [
        part.replace("|", r"\|") if place % 2 else re.sub(r"([\\*_\[\]<>|#])", r"\\\1", part)
        for place, part in enumerate(parts)
    ]
    return "".join(escaped).replace("\n", " ")
