"""Whether an installed release still has what we use of it besides its public interface.

A *surface* is a function that we call, a method that we override, an attribute or a constant that we read. Each says what it
must look like and where we use it. The lists are `upstream_surfaces.py` and, of vLLM, `rollouts/vllm/upstream.py`.
"""

import importlib
import inspect
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import UnsupportedReleaseError


logger = logging.getLogger(__name__)

_GONE = "is gone"


@dataclass(frozen=True)
class Surface:
    """
    Something of another package.

    Args:
        where (`str`): `"module:name"` or `"module:Class.name"`.
        used (`str`): The file of ours that uses it.
        listed (`str`): Names of parameters, attributes or methods, by kind.
    """

    where: str
    used: str
    listed: str = ""

    @property
    def names(self) -> list[str]:
        return self.listed.split()

    def problem(self) -> str | None:
        """What is wrong with it; `None` where it is as expected, or its package is not installed."""
        module, _, path = self.where.partition(":")
        if find_spec(module.partition(".")[0]) is None:
            return None
        try:
            found: Any = importlib.import_module(module)
            for name in filter(None, path.split(".")):
                found = getattr(found, name)
        except (ImportError, AttributeError) as error:
            return f"{_GONE} ({error})"
        return self._difference(found)

    def _difference(self, found: Any) -> str | None:
        return None


class Called(Surface):
    """A function that we call with these arguments."""

    def _difference(self, found: Any) -> str | None:
        parameters = _parameters(found)
        kinds = {parameter.kind for parameter in parameters.values()}
        missing = [name for name in self.names if name not in parameters]
        if missing and inspect.Parameter.VAR_KEYWORD not in kinds:
            return f"takes {_in_brackets(parameters)}, expected {', '.join(missing)} among them"
        plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        more = [
            name
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty and parameter.kind in plain and name not in self.names
        ]
        return f"asks for {', '.join(more)} besides {_in_brackets(self.names)}" if more else None


class PassedOn(Surface):
    """A method that we override and that has these parameters; all others are passed on."""

    def _difference(self, found: Any) -> str | None:
        missing = [name for name in self.names if name not in _parameters(found)]
        return (
            f"takes {_in_brackets(_parameters(found))}, expected {', '.join(missing)} among them" if missing else None
        )


@dataclass(frozen=True)
class Overridden(Surface):
    """
    A method that we override with exactly these parameters.

    Args:
        returns (`int`, *optional*): How many values it returns, where we take them apart.
        may_be_absent (`bool`): Whether some tested releases do not have it, and do not ask for it.
    """

    returns: int | None = None
    may_be_absent: bool = False

    def problem(self) -> str | None:
        problem = super().problem()
        return None if self.may_be_absent and (problem or "").startswith(_GONE) else problem

    def _difference(self, found: Any) -> str | None:
        parameters = [parameter.name for parameter in _parameters(found).values()]
        if parameters != self.names:
            return f"takes {_in_brackets(parameters)}, expected {_in_brackets(self.names)}"
        if self.returns is None:
            return None
        count = _returned(found)
        return None if count == self.returns else f"returns {count} values, expected {self.returns}"


class Abstract(Surface):
    """A class that we derive from, of which we implement these methods."""

    def _difference(self, found: Any) -> str | None:
        more = sorted(found.__abstractmethods__ - set(self.names))
        return f"asks for {', '.join(more)} besides {_in_brackets(self.names)}" if more else None


class Attributes(Surface):
    """A class whose instances have these attributes."""

    def _difference(self, found: Any) -> str | None:
        missing = [name for name in self.names if not hasattr(found, name) and name not in _assigned(found)]
        return f"has no {', '.join(missing)}" if missing else None


class Operator(Surface):
    """An operator of torch that we call with these arguments, where a build has it: what uses it finds that out by trying."""

    def problem(self) -> str | None:
        problem = super().problem()
        return None if (problem or "").startswith(_GONE) else problem

    def _difference(self, found: Any) -> str | None:
        arguments = [argument.name for argument in found.default._schema.arguments]
        return (
            None if arguments == self.names else f"takes {_in_brackets(arguments)}, expected {_in_brackets(self.names)}"
        )


class Mentions(Surface):
    """A module whose source has these names: what it does to objects that are not its own. Read, not imported."""

    def problem(self) -> str | None:
        root, *rest = self.where.split(".")
        spec = find_spec(root)
        if spec is None or not spec.submodule_search_locations:
            return None
        path = Path(spec.submodule_search_locations[0], *rest).with_suffix(".py")
        if not path.is_file():
            return _GONE
        source = path.read_text(encoding="utf-8")
        missing = [name for name in self.names if re.search(rf"\b{name}\b", source) is None]
        return f"does not mention {', '.join(missing)}" if missing else None


@dataclass(frozen=True)
class Equals(Surface):
    """
    A constant that we have a copy of.

    Args:
        value: The copy.
    """

    value: Any = None

    def _difference(self, found: Any) -> str | None:
        return None if found == self.value else f"is {found!r}, expected {self.value!r}"


def mismatches(surfaces: Iterable[Surface]) -> list[str]:
    """One line for each surface that is not what it was: what it is, what was expected, what was found, and where we use it."""
    found = ((surface, surface.problem()) for surface in surfaces)
    return [f"{surface.where} {problem} (used in {surface.used})" for surface, problem in found if problem is not None]


def check_releases(tested: dict[str, tuple[str, str]], surfaces: Iterable[Surface]) -> None:
    """
    Warns of a package whose release is not among the tested ones.

    Raises:
        UnsupportedReleaseError: where something that we stand on has gone from it; lists all of it.
    """
    untested = [
        f"{package} {version} (tested: {oldest} to {newest})"
        for package, (oldest, newest) in tested.items()
        if not is_within(version := metadata.version(package), oldest, newest)
    ]
    if not untested:
        return
    problems = mismatches(surfaces)
    if problems:
        lines = "\n".join(f"- {problem}" for problem in problems)
        raise UnsupportedReleaseError(
            f"This package cannot work with {' and '.join(untested)}. Install a tested release. What is different:\n{lines}"
        )
    logger.warning(
        f"Not tested with {' and '.join(untested)}. Everything that this package uses is there, but the results were not checked."
    )


def is_within(version: str, oldest: str, newest: str) -> bool:
    """Whether a release is of one of two minor versions, or between them."""
    minor, first, last = (tuple(map(int, re.findall(r"\d+", text)[:2])) for text in (version, oldest, newest))
    return first <= minor <= last


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    """By name, without `self`."""
    parameters = inspect.signature(function).parameters
    return {name: parameter for name, parameter in parameters.items() if name != "self"}


def _in_brackets(names: Iterable[str]) -> str:
    return f"({', '.join(names)})"


def _returned(function: Any) -> int | None:
    """How many values a function's last `return` has."""
    import ast
    import textwrap

    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    returned = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    last = returned[-1] if returned else None
    return len(last.elts) if isinstance(last, ast.Tuple) else None


@cache
def _assigned(cls: type) -> frozenset[str]:
    """Attributes that the methods of a class and of its bases assign to `self`."""
    found: set[str] = set()
    for base in cls.__mro__[:-1]:
        try:
            source = inspect.getsource(base)
        except (OSError, TypeError):
            continue
        found |= {*re.findall(r"\bself\.(\w+)\s*(?::[^=\n]+)?=(?!=)", source)}
        found |= {*re.findall(r"^    (\w+)\s*:", source, re.MULTILINE)}
    return frozenset(found)
