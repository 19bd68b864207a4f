"""The report of a comparison as one HTML page: no script, nothing fetched, everything in it that it shows."""

import base64
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from .content import Content, Page
from .plots import Plot


if TYPE_CHECKING:
    from .sections import Section

_TEMPLATE = "comparison.html.jinja"


def write_html(content: Content, parts: "list[Section]", pictures: list[Plot], path: Path) -> None:
    """Writes the page; whatever a model has said is text in it, never markup."""
    path.write_text(render_html(content, parts, pictures), encoding="utf-8")


def render_html(content: Page, parts: "list[Section]", pictures: list[Plot]) -> str:
    """The page as one text."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["prose"] = _prose
    template = environment.from_string(resources.files("trl_exbias.templates").joinpath(_TEMPLATE).read_text("utf-8"))
    images = {picture.name: (picture.title, _data_uri(picture.svg)) for picture in pictures}
    return template.render(content=content, sections=parts, images=images)


def _prose(text: str) -> list[tuple[bool, str]]:
    """A paragraph's stretches: whether each is a code span (in backticks), and its text."""
    return [(bool(place % 2), part) for place, part in enumerate(re.split(r"`([^`\n]*)`", text)) if part]


def _data_uri(svg: bytes) -> str:
    # As an image, in which a browser runs nothing and of which no name can clash with another's.
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
