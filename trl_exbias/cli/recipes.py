"""`exbias recipes list|show|copy`: the shipped recipes."""

import shutil
import sys
from importlib import resources
from pathlib import Path


_USAGE = "usage: exbias recipes list | show NAME | copy NAME [TO]"


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
        raise ValueError(f"There is no recipe {name!r}. There are: {', '.join(names())}.")
    return path


def names() -> list[str]:
    """Names of all recipes, sorted."""
    folder = recipes_folder()
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def run(argv: list[str]) -> int:
    """The command."""
    match argv:
        case ["list"]:
            for name in names():
                first_line = recipe_path(name).read_text().splitlines()[0].lstrip("# ")
                print(f"{name:<40} {first_line}")
        case ["show", name]:
            return _with_recipe(name, lambda path: print(path.read_text(), end=""))
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


def _with_recipe(name: str, act) -> int:
    try:
        act(recipe_path(name))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
