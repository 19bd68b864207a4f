"""Hooks of mkdocs: generated pages, pages that lie outside docs/, and links that leave it."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["COLUMNS"] = "100"  # how wide `--help` is

from website import reference  # noqa: E402


_OUTSIDE = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
_REFERENCE = re.compile(r"\[<code>~?([\w.]+)</code>\](?!\()")
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are not in docs/."""
    made = {
        "reference/settings.md": reference.settings_page(),
        "reference/commands.md": reference.commands_page(),
        "reference/api.md": reference.api_page(),
    }
    for place, source in _OUTSIDE.items():
        made[place] = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """A link to a file of the repository outside docs/ has nothing to lead to on the site: its text stays."""
    folder = Path(config.docs_dir, page.file.src_uri).parent

    def leaves(match: re.Match[str]) -> str:
        text, target = match.groups()
        if "://" in target or target.startswith("#"):
            return match[0]
        place = (folder / target.partition("#")[0]).resolve()
        return match[0] if place.is_relative_to(config.docs_dir) or not place.exists() else text

    return _LINK.sub(leaves, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """References as TRL's docstrings write them, such as [`~trl.SFTTrainer`]: links where the page has the object, else names."""
    objects = {place.rpartition(".")[2]: place for place in re.findall(r'id="(trl_exbias\.[\w.]+)"', html)}

    def link(match: re.Match[str]) -> str:
        name = match[1].rpartition(".")[2]
        code = f"<code>{name}</code>"
        return f'<a href="#{objects[name]}">{code}</a>' if name in objects else code

    return _REFERENCE.sub(link, html)
