"""The package's own errors: what went wrong outside it, in words for whoever gave the input.

A command prints the message of an [`ExbiasError`] alone. Everything else, our own mistakes included, keeps its traceback.
"""


class ExbiasError(Exception):
    """Something that the package has looked for and found; its message says what was given, what is allowed, and what to do."""


class UsageError(ExbiasError, ValueError):
    """What was given cannot be worked with: a setting, data, a model, a file."""


class UsageTypeError(UsageError, TypeError):
    """What was given is of another kind than what is needed."""


class MissingPackageError(UsageError, ImportError):
    """An optional package that is needed for this is not installed."""


class DoesNotFitError(ExbiasError, RuntimeError):
    """A device's memory cannot hold what is needed at least."""


class NotFetchedError(ExbiasError, RuntimeError):
    """Something could not be fetched from a package index, or is not what was expected."""
