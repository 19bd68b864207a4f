"""`exbias check`: everything that can be known of a run before anything is spent on it; see `docs/planning.md`."""

import argparse
import contextlib
import gc
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..planning.hub import Hub, uses_hub
from ..settings.findings import Finding, Findings
from ..settings.keys import valid_keys
from ..settings.methods import method_named, methods
from ..settings.parser import Parser
from ..settings.recipe import RecipeError, check_keys, exit_with, read_recipe
from ..settings.recipes import recipe_path
from .training import resolve_accelerate_config


_DESCRIPTION = """\
Reads a recipe as a training command would, reports every problem at once, and plans the run: steps, tokens, memory of each
device and disk in each phase. Loads no weights and needs no GPU.

The method is the one named by --method; else the one whose own keys the recipe has (beta: bash; correction_template or
max_new_tokens: rac; alpha, context_length, …: dad-dagger; spin_lambda: spin; verifier: verified); else the one whose name a
folder of the recipe's path has (recipes/scheduled-sampling/mine.yaml)."""
_EPILOG = """\
Any other argument overrides the recipe, as for `exbias bash`, e.g. --per_device_train_batch_size 4.
If the hub does not answer, a warning says what was not checked.
Exit status: 0; 1 for warnings with --strict; 2 for errors."""


def run(argv: list[str]) -> int:
    """The command."""
    # Nothing of a short command is worth collecting, and the collector would run through every module that is imported.
    gc.disable()
    try:
        options, overrides = _parser().parse_known_args(argv)
        return _check(options, overrides)
    finally:
        gc.enable()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="exbias check",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="a recipe, or the name of a shipped one")
    parser.add_argument(
        "--method",
        metavar="NAME",
        help=f"the recipe's method: {', '.join(methods())}, or `module:Trainer`, one of your own",
    )
    parser.add_argument("--num_processes", type=int, help="training processes, one a GPU")
    parser.add_argument(
        "--accelerate_config", "--config_file", metavar="NAME_OR_FILE", help="as for `exbias bash`: zero3, fsdp2, …"
    )
    parser.add_argument("--gpu_memory_gib", type=float, help="memory of one GPU: warns of phases that do not fit")
    parser.add_argument("--strict", action="store_true", help="warnings make the exit status 1")
    parser.add_argument("--json", action="store_true", help="print findings and plan as JSON")
    return parser


def _check(options: argparse.Namespace, overrides: list[str]) -> int:
    try:
        path = _find(options.recipe)
        argv = ["--config", str(path), *overrides]
        _, recipe = read_recipe(argv)
        method = method_named(options.method or method_of(path, recipe)).name
    except ValueError as error:
        return exit_with(error)
    findings = Findings(on_found=(lambda finding: None) if options.json else _print)
    hub = Hub()
    on_hub = uses_hub(recipe) or any("/" in override for override in overrides)
    if on_hub:
        hub.ask()
    if not options.json:
        print(f"{path} ({method})", flush=True)
    with findings.collect("keys"):
        check_keys(method, argv)
    import torch  # noqa: F401 - takes as long as the hub does to answer

    if on_hub and not hub.answers:
        # Said before the libraries that read it are imported: none of them tries again on its own.
        os.environ["HF_HUB_OFFLINE"] = "1"
    from ..core.late_imports import import_late

    import_late()
    from ..planning.look import look  # now that the keys have been answered for
    from ..settings.arguments import read_arguments

    with _quiet():
        arguments = read_arguments(findings, method, overrides, recipe)
        accelerate_file = None
        with findings.collect("placement"):
            accelerate_file = _accelerate_file(options.accelerate_config)
        plan = look(findings, hub, arguments, options.num_processes, accelerate_file, options.gpu_memory_gib)
    errors, warnings = len(findings.errors), len(findings.warnings)
    if options.json:
        found = {"errors": findings.errors, "warnings": findings.warnings}
        record = {name: [{"subject": f.subject, "message": f.message} for f in part] for name, part in found.items()}
        print(json.dumps({"recipe": str(path), "method": method, **record, "plan": plan and plan.as_dict()}, indent=2))
    else:
        if plan is not None:
            print(f"\n{plan}\n")
        print(f"{errors} error{'s'[: errors != 1]}, {warnings} warning{'s'[: warnings != 1]}")
    return 2 if errors else int(bool(warnings and options.strict))


def method_of(path: Path, recipe: dict[str, Any]) -> str:
    """
    Which training command a recipe is for: by the keys that only one of them has, else by a folder of its path.

    Raises:
        RecipeError: if neither says.
    """
    known = methods()
    folders = [part for part in reversed(path.absolute().parent.parts) if part in known]
    if folders and known[folders[0]].is_baseline:
        return folders[0]
    # A baseline shares keys with the method it is compared with, which is the one that is meant unless a key says otherwise.
    by_keys = _with_own_keys(known, recipe) or _with_own_keys(
        {name for name, method in known.items() if not method.is_baseline}, recipe
    )
    if len(by_keys) == 1:
        return by_keys.pop()
    if folders:
        return folders[0]
    reason = f"it has keys of {' and of '.join(sorted(by_keys))}" if by_keys else "it has no key of a single method"
    raise RecipeError(str(path), [f"{reason}, and lies in no method's folder: say --method {'|'.join(known)}."])


def _with_own_keys(methods: Iterable[str], recipe: dict[str, Any]) -> set[str]:
    """Those of some methods of which the recipe has a key that none of the others knows."""
    keys = {method: set(valid_keys(method)) for method in methods}
    return {
        method
        for method, own in keys.items()
        if (own - set().union(*(keys[other] for other in keys if other != method))) & set(recipe)
    }


def _find(name: str) -> Path:
    path = Path(name)
    return path if path.exists() or path.suffix == ".yaml" else recipe_path(name)


def _print(finding: Finding) -> None:
    print(f"  {finding.level:<7}  {finding.subject:<9}  {finding.message}", flush=True)


def _accelerate_file(name: str | None) -> str | None:
    """The file that `--accelerate_config` stands for."""
    return None if name is None else resolve_accelerate_config(["--accelerate_config", name])[1]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the libraries' bars and remarks out of the findings."""
    import datasets
    import transformers

    verbosity, had_bars = transformers.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if had_bars:
            datasets.enable_progress_bars()
