"""A command line whose mistakes are answered in one line, instead of a screen of usage before it."""

import argparse
import re
from typing import Any, NoReturn

from ..core.errors import UsageError, did_you_mean


_CHOICE = re.compile(
    r"argument (?P<flags>\S+): invalid choice: (?P<value>.*) \(choose from (?P<choices>.*)\)", re.DOTALL
)
_VALUE = re.compile(r"argument (?P<flags>\S+): invalid (?P<kind>\w+) value: (?P<value>.*)", re.DOTALL)
_KINDS = {"int": "a whole number", "float": "a number"}


class Parser(argparse.ArgumentParser):
    """An [`~argparse.ArgumentParser`] that says what is wrong, and where to read more; status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {plain_problem(message)} `{self.prog} --help` tells more.\n")


def plain_problem(message: str) -> str:
    """What argparse says of a value, in our words: what was given, what is allowed, and the nearest choice."""
    if found := _CHOICE.fullmatch(message):
        value = found["value"].strip("'\"")
        choices = [choice.strip(" '\"") for choice in found["choices"].split(",")]
        return f"`{_flag(found)} {value}` is not one of {', '.join(choices)}.{did_you_mean(value, choices)}"
    if found := _VALUE.fullmatch(message):
        value = found["value"].strip("'\"")
        kind = _KINDS.get(found["kind"], f"of the kind that is needed ({found['kind']})")
        return f"`{_flag(found)} {value}` is not {kind}."
    return message[:1].upper() + message[1:] + ("" if message.endswith(".") else ".")


def _flag(found: re.Match) -> str:
    return found["flags"].split("/")[0]


def raising(parser_class: type[argparse.ArgumentParser]) -> Any:
    """The same parser, which raises a [`UsageError`] instead of printing its usage and leaving."""

    class Raising(parser_class):  # type: ignore[valid-type, misc]  # a base that is only known when it runs
        def error(self, message: str) -> NoReturn:
            raise UsageError(plain_problem(message))

    return Raising
