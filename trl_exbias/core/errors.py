"""The package's own errors: what went wrong outside it, in words for whoever gave the input.

A command prints the message of an [`ExbiasError`] alone. Everything else, our own mistakes included, keeps its traceback.
"""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean …?`, with the known name that is nearest; empty where none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean `{nearest[0]}`?" if nearest else ""


class ExbiasError(Exception):
    """Something that the package has looked for and found; its message says what was given, what is allowed, and what to do."""


class UsageError(ExbiasError, ValueError):
    """What was given cannot be worked with: a setting, data, a model, a file."""

    #: Where a message lists several things, each of them.
    problems: list[str]


class UsageTypeError(UsageError, TypeError):
    """What was given is of another kind than what is needed."""


class MissingPackageError(UsageError, ImportError):
    """An optional package that is needed for this is not installed."""


class UnsupportedReleaseError(UsageError, ImportError):
    """An installed package has not what this one stands on; lists what is missing."""


class DoesNotFitError(ExbiasError, RuntimeError):
    """A device's memory cannot hold what is needed at least."""


class NotFetchedError(ExbiasError, RuntimeError):
    """Something could not be fetched from a package index, or is not what was expected."""
