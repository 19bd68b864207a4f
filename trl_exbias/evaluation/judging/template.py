"""Prompts of judges: jinja files, into which the texts under judgement go as data."""

import hashlib
import re
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...core.errors import UsageError
from .requests import Message


# What a text would have to say on a line of its own to pass for a part of the prompt, or for a judge's decision.
_MARKER = re.compile(
    r"^(?=[ \t]*\[[^\]\n]{1,40}\][ \t]*$|[^\w\n]*(?:instructions|comparison|preferred|score|your score)[^\w\n]*:)",
    re.IGNORECASE | re.MULTILINE,
)


class JudgeTemplate:
    """
    A prompt for a judge, rendered in jinja's sandbox as one message of the user.

    Args:
        source (`str`): One of the names of `named`, or the path of a `.jinja` file.
        variables (`Collection[str]`): What it is given, and must mention.
        named (`Collection[str]`): Templates of this package.

    Attributes:
        id (`str`): Name and version: the first characters of the file's SHA-256.

    Raises:
        ValueError: for a file that does not exist, a jinja error, or variables that are missing or unknown.
    """

    def __init__(self, source: str | Path, variables: Collection[str], named: Collection[str] = ()):
        if str(source) in named:
            text = (resources.files(__package__) / "templates" / f"{source}.jinja").read_text(encoding="utf-8")
        elif Path(source).is_file():
            text = Path(source).read_text(encoding="utf-8")
        else:
            allowed = "".join(f"`{name}`, " for name in sorted(named))
            raise UsageError(
                f"{str(source)!r} is not a template of a judge: give {allowed}or the path of a .jinja file."
            )
        name = Path(source).name.removesuffix(".jinja")
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
        try:
            mentioned = meta.find_undeclared_variables(environment.parse(text))
            self._template = environment.from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise UsageError(
                f"The judge's template {source} is not valid jinja: {error} (line {error.lineno})."
            ) from error
        if mentioned != set(variables):
            listed = ", ".join(f"`{{{{ {variable} }}}}`" for variable in sorted(variables))
            differing = ", ".join(sorted(mentioned ^ set(variables)))
            raise UsageError(f"The judge's template {source} must mention exactly {listed}; look at: {differing}.")
        self.id = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def messages(self, texts: Mapping[str, str], **values: Any) -> tuple[Message, ...]:
        """The prompt, with the texts under judgement [`quoted`] and the other values as they are."""
        content = self._template.render({name: quoted(text) for name, text in texts.items()}, **values)
        return ({"role": "user", "content": content},)


def quoted(text: str) -> str:
    """
    A text under judgement, with `> ` before each line that could pass for a part of the prompt or for a decision, such
    as `[summary B]` or `Preferred: A`. Any other text stays as it is, at both ends stripped.
    """
    return _MARKER.sub("> ", text.strip())


def last_word(text: str) -> str | None:
    """An answer without the thoughts before it in `<think>` tags; `None` where they were cut off."""
    _, closed, after = text.rpartition("</think>")
    if closed:
        return after.strip()
    return None if "<think>" in text else text.strip()
