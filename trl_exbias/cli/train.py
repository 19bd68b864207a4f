"""`exbias train --method NAME|module:Trainer …`: any method, a user's own too; see `docs/own_method.md`."""

import sys

from ..core.errors import ExbiasError, UsageError
from ..settings.methods import methods
from ..settings.recipe import exit_with
from .training import launch, main


_HELP = """\
usage: exbias train --method NAME|module:Trainer [--config RECIPE.yaml] [--KEY VALUE …]

Trains with any method: a registered one ({methods}), or one of your own, importable from here.
With --method, --help lists its options."""


def run(argv: list[str]) -> int:
    """The command."""
    asks_for_help = bool({"-h", "--help"} & {*argv})
    if asks_for_help and not any(argument.split("=")[0] == "--method" for argument in argv):
        print(_HELP.format(methods=", ".join(methods())))
        return 0
    try:
        method, rest = _take_method(argv)
    except ExbiasError as error:
        return exit_with(error)
    return launch(method, rest)


def _take_method(argv: list[str]) -> tuple[str, list[str]]:
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
    try:
        arguments = _take_method(sys.argv[1:])
    except ExbiasError as error:
        sys.exit(exit_with(error))
    main(*arguments)
