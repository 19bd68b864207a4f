"""The shipped recipes, and the configurations of `accelerate` that go with them."""

from importlib import resources
from pathlib import Path

from ..core.errors import UsageError
from .keys import package_folder
from .methods import methods


#: Folders of recipes that no method of ours trains by.
ACCELERATE, COMPARE = "accelerate", "compare"


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
        raise UsageError(f"There is no recipe {name!r}. There are: {', '.join(all_names())}.")
    return path


def names() -> list[str]:
    """Names of the recipes of `exbias`'s own training commands, sorted."""
    return [name for name in all_names() if name.split("/")[0] in methods()]


def accelerate_configs() -> dict[str, Path]:
    """Files that `--accelerate_config` knows by name: those of `recipes/accelerate`, and what only TRL ships."""
    trls = package_folder("trl") / "accelerate_configs"
    ours = recipes_folder() / ACCELERATE
    # Ours last: they win.
    files = {path.stem: path for folder in (trls, ours) for path in folder.glob("*.yaml")}
    return dict(sorted(files.items()))


def all_names() -> list[str]:
    """Names of all files among the recipes, sorted."""
    folder = recipes_folder()
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
