"""`exbias train --method NAME|module:Trainer …`: any method, a user's own too; see `docs/own_method.md`."""

import sys

from ..core.errors import ExbiasError, UsageError
from ..settings.recipe import exit_with
from .training import launch, main


def run(argv: list[str]) -> int:
    """The command."""
    try:
        method, rest = take_method(argv)
    except ExbiasError as error:
        return exit_with(error)
    return launch(method, rest)


def take_method(argv: list[str]) -> tuple[str, list[str]]:
    """
    What `--method` names, and the other arguments.

    Raises:
        UsageError: if it is not there.
    """
    for i, argument in enumerate(argv):
        if argument == "--method" and i + 1 < len(argv):
            return argv[i + 1], [*argv[:i], *argv[i + 2 :]]
        if argument.startswith("--method="):
            return argument.removeprefix("--method="), [*argv[:i], *argv[i + 1 :]]
    raise UsageError(
        "`exbias train` needs `--method NAME`, a registered method, or `--method module:Trainer`, one of your own."
    )


if __name__ == "__main__":
    main(*take_method(sys.argv[1:]))
