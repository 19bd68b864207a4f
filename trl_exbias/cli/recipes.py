"""`exbias recipes list|show|copy`: the shipped recipes, and the configurations of `accelerate` that go with them."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from ..settings.recipes import ACCELERATE, COMPARE, all_names, names, recipe_path


_USAGE = "usage: exbias recipes list | show NAME | copy NAME [TO]"
_HELP = f"""\
{_USAGE}

  list   every shipped recipe with its first line: recipes of the methods, comparisons, configurations of accelerate
  show   the text of one, e.g. bash/pythia-1b_tldr
  copy   to a file of your own (default: its name, here)"""


def run(argv: list[str]) -> int:
    """The command."""
    if {"-h", "--help"} & {*argv}:
        print(_HELP)
        return 0
    match argv:
        case ["list"]:
            _list()
        case ["show", name]:
            return _with_recipe(name, lambda path: print(path.read_text(encoding="utf-8"), end=""))
        case ["copy", name, *to] if len(to) <= 1:
            target = Path(to[0]) if to else Path(f"{Path(name).name}.yaml")
            if target.exists():
                print(f"error: {target} exists already; name another file.", file=sys.stderr)
                return 2
            return _with_recipe(name, lambda path: print(f"wrote {shutil.copyfile(path, target)}"))
        case _:
            print(_USAGE, file=sys.stderr)
            return 2
    return 0


def _list() -> None:
    """A line for each file: its name and the first line of its text."""
    ours = names()
    configs = [name for name in all_names() if name.split("/")[0] == ACCELERATE]
    comparisons = [name for name in all_names() if name.split("/")[0] == COMPARE]
    others = [name for name in all_names() if name not in (*ours, *configs, *comparisons)]
    for heading, group in (
        ("Recipes, for exbias METHOD --config", ours),
        ("Comparisons, for exbias compare", comparisons),
        ("Recipes for TRL's own commands, `trl sft` and `trl dpo`", others),
        ("Machines, for --accelerate_config NAME", configs),
    ):
        print(f"{heading}:")
        for name in group:
            first_line = recipe_path(name).read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
            print(f"  {name:<48} {first_line}")


def _with_recipe(name: str, act: Callable[[Path], object]) -> int:
    try:
        act(recipe_path(name))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
