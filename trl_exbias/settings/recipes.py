"""`exbias recipes list|show|copy`: the shipped recipes, and the configurations of `accelerate` that go with them."""

import shutil
import sys
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from ..core.errors import UsageError
from .keys import CONFIG_CLASSES


_USAGE = "usage: exbias recipes list | show NAME | copy NAME [TO]"
_ACCELERATE, _COMPARE = "accelerate", "compare"


def recipes_folder() -> Path:
    """Where the recipes are: in the installed package, or at the top of a checkout."""
    return Path(str(resources.files("trl_exbias.recipes").joinpath("")))


def recipe_path(name: str) -> Path:
    """
    The file of a recipe named as `list` prints it.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    path = recipes_folder() / (name if name.endswith(".yaml") else f"{name}.yaml")
    if not path.is_file():
        raise UsageError(f"There is no recipe {name!r}. There are: {', '.join(_all_names())}.")
    return path


def names() -> list[str]:
    """Names of the recipes of `exbias`'s own training commands, sorted."""
    return [name for name in _all_names() if name.split("/")[0] in CONFIG_CLASSES]


def accelerate_configs() -> dict[str, Path]:
    """Files that `--accelerate_config` knows by name: those of `recipes/accelerate`, and what only TRL ships."""
    spec = find_spec("trl")
    trls = Path(spec.submodule_search_locations[0], "accelerate_configs") if spec else Path()
    ours = recipes_folder() / _ACCELERATE
    # Ours last: they win.
    files = {path.stem: path for folder in (trls, ours) for path in folder.glob("*.yaml")}
    return dict(sorted(files.items()))


def _all_names() -> list[str]:
    folder = recipes_folder()
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def run(argv: list[str]) -> int:
    """The command."""
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
    configs = [name for name in _all_names() if name.split("/")[0] == _ACCELERATE]
    comparisons = [name for name in _all_names() if name.split("/")[0] == _COMPARE]
    others = [name for name in _all_names() if name not in (*ours, *configs, *comparisons)]
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


def _with_recipe(name: str, act) -> int:
    try:
        act(recipe_path(name))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
