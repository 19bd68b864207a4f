"""The help of a training command, from the sources that its keys are read from: importing the classes takes seconds."""

import ast
import dataclasses
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .keys import COMMON_CLASSES, SourceClass, source_classes
from .methods import method_named


_HEAD = """\
usage: exbias {command} [--config RECIPE.yaml] [--KEY VALUE …]

{about}.

Each key below stands in the recipe as `key: value` or on the command line as --key value, which wins; --no_key turns a switch off.
Flags of `accelerate launch` (--num_processes 2, --accelerate_config zero3) are handed on. `exbias check RECIPE.yaml` looks at a
recipe before it is run."""
_WIDTH = 120


@dataclass(frozen=True)
class Option:
    """
    Args:
        name (`str`): The key.
        kind (`str`): Its type, as it is written.
        default (`str`, *optional*): As it is written; `None` where it is worked out or there is none.
        help (`str`): What it does; empty where its class does not say.
    """

    name: str
    kind: str
    default: str | None
    help: str


def training_help(method: str) -> str:
    """
    What `exbias <method> --help` prints: the method's own options first, then the loop's, TRL's and transformers'.

    Raises:
        UsageError: if there is no such method.
    """
    found = method_named(method)
    width = min(_WIDTH, shutil.get_terminal_size().columns)
    lines = [_HEAD.format(command=" ".join(found.command), about=found.about)]
    for title, options in sections(method):
        lines.append(f"\n{title}:")
        for option in options:
            default = "" if option.default in (None, "None") else f" (default: {option.default})"
            lines.append(f"  --{option.name} {option.kind}{default}")
            lines += textwrap.wrap(option.help, width, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)


def sections(method: str) -> list[tuple[str, list[Option]]]:
    """The options of a method's training command under the class that each comes from; each option once."""
    seen: set[str] = set()
    found = []
    for title, is_ours, options in _all_sections(method):
        new = [option for option in options if option.name not in seen]
        seen |= {option.name for option in new}
        if new:
            found.append((is_ours, title, new))
    # What TRL's and transformers' classes have comes last: there is much of it.
    found.sort(key=lambda section: not section[0])
    return [(title, options) for _, title, options in found]


def _all_sections(method: str) -> Iterator[tuple[str, bool, list[Option]]]:
    found, classes = method_named(method), source_classes()
    name = "" if found.config is None else found.config.partition(":")[2]
    if name not in classes:
        # A user's own configuration is not among the sources.
        for own in found.config_class().__mro__:
            if own.__name__ in classes:
                name = own.__name__
                break
            yield own.__name__, True, [*_options_of(own)]
    for root in (name, *COMMON_CLASSES):
        yield from _sections_from(root, classes)


def _sections_from(name: str, classes: dict[str, SourceClass]) -> Iterator[tuple[str, bool, list[Option]]]:
    found = classes.get(name)
    if found is None:
        return
    is_ours = found.package == "trl_exbias"
    title = name if is_ours else f"{name} of {found.package}"
    yield title, is_ours, [_option(field, node) for field, node in found.fields.items()]
    for base in found.bases:
        yield from _sections_from(base, classes)


def _option(name: str, node: ast.AnnAssign) -> Option:
    default, text = node.value, ""
    if isinstance(node.value, ast.Call):
        keywords = {keyword.arg: keyword.value for keyword in node.value.keywords}
        default = keywords.get("default")
        text = (_literal(keywords.get("metadata")) or {}).get("help", "")
    value = None if default is None else _literal(default)
    return Option(name, ast.unparse(node.annotation), None if value is None else str(value), text)


def _literal(node: ast.expr | None) -> Any:
    """The value of a literal; the literal entries of a dictionary; `None` for anything else."""
    if isinstance(node, ast.Dict):
        return {_literal(key): _literal(value) for key, value in zip(node.keys, node.values, strict=True)}
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def _options_of(config_class: type) -> Iterator[Option]:
    if not dataclasses.is_dataclass(config_class):
        return
    for field in dataclasses.fields(config_class):
        if field.init and field.name in config_class.__dict__.get("__annotations__", {}):
            kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
            default = None if field.default in (dataclasses.MISSING, None) else str(field.default)
            yield Option(field.name, kind, default, field.metadata.get("help", ""))
