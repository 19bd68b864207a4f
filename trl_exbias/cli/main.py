"""`exbias`: one command a file; a command's module is imported when it is called."""

import importlib
import sys

from ..core.calm import calm_imports
from ..core.errors import ExbiasError, did_you_mean
from ..core.files import closed_pipe_is_no_error
from ..core.leaving import leave
from ..settings.methods import methods
from ..settings.recipe import exit_with


COMMANDS = {
    "train": "trains with any method, also your own: --method NAME or --method my_module:MyTrainer",
    "check": "checks a recipe before it runs: every problem at once, and a plan of steps, tokens, memory and disk",
    "diagnose": "asks before training whether gold is still right after a token that differs, and names the method that follows",
    "measure": "measures perplexity, free-running cross-entropy and exposure bias of any model, with a plot",
    "evaluate": "evaluates what models write: ROUGE, GSM8K, MATH, judges, embeddings, degeneration; and their exposure bias",
    "rollouts": "inspects, compares, exports and pushes what a run has rolled out",
    "bench": "does a method cure? Trains every method for equal tokens on tasks whose true distribution is known",
    "compare": "trains several methods at equal compute, evaluates them alike and writes one report",
    "demo": "trains a small model with RAC, BASH and DaD-DAgger on a CPU, in minutes",
    "recipes": "lists, shows or copies the shipped recipes",
    "env": "prints versions and hardware for a bug report",
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    calm_imports()
    try:
        with closed_pipe_is_no_error():
            status = _run(arguments)
    except ExbiasError as error:
        status = exit_with(error)
    if argv is None and arguments[:1] == ["check"]:
        leave(status)
    return status


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print("usage: exbias COMMAND …\n")
        for name, what in {**{m.name: m.about for m in methods().values()}, **COMMANDS}.items():
            print(f"  {name:<18} {what}")
        print("\nexbias COMMAND --help says more.")
        return 0 if argv else 2
    command, *rest = argv
    if command in methods():
        command, *before = methods()[command].command
        rest = [*before, *rest]
    elif command not in COMMANDS:
        known = [*methods(), *COMMANDS]
        hint = did_you_mean(command, known)
        print(f"error: there is no command `{command}`.{hint} Commands: {', '.join(known)}.", file=sys.stderr)
        return 2
    return importlib.import_module(f"trl_exbias.cli.{command.replace('-', '_')}").run(rest)


if __name__ == "__main__":
    raise SystemExit(main())
