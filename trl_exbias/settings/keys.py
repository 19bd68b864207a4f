"""The keys that a training command understands, read from the sources of the installed packages.

Importing the configuration classes means importing torch, which takes seconds; a mistyped key should be an answer of
tenths. So the classes are read as text: their annotated fields, and those of their bases. A test compares the result
with the imported classes.
"""

import ast
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ..core.errors import did_you_mean
from .methods import method_named


# Where the classes are defined that commands are made of, and their bases.
_SOURCES = (
    ("trl_exbias", "settings/data_arguments.py"),
    ("trl_exbias", "loop/config.py"),
    ("trl_exbias", "methods/configs.py"),
    ("trl_exbias", "methods/dad_dagger/config.py"),
    ("trl", "scripts/utils.py"),
    ("trl", "trainer/model_config.py"),
    ("trl", "trainer/sft_config.py"),
    ("trl", "trainer/base_config.py"),
    ("transformers", "training_args.py"),
)
#: Classes that every training command reads, in addition to the method's own config.
COMMON_CLASSES = ("DataArguments", "ModelConfig", "DatasetMixtureConfig")
#: Keys of a recipe that are not arguments: environment variables, set before anything runs.
RECIPE_ONLY = ("env",)
#: Flags of the launcher and the parser themselves.
_LAUNCHER_FLAGS = ("config", "accelerate_config", "help", "h")


@dataclass(frozen=True)
class SourceClass:
    """
    A class as it is written.

    Args:
        package (`str`): The distribution that it is in.
        bases (`list[str]`): Names of its bases.
        fields (`dict[str, ast.AnnAssign]`): Its own fields.
    """

    package: str
    bases: list[str]
    fields: dict[str, ast.AnnAssign]


def valid_keys(method: str) -> list[str]:
    """Every argument of a method's training command, sorted."""
    found, classes = method_named(method), source_classes()
    name = None if found.config is None else found.config.partition(":")[2]
    # The configuration of a user's own method is not among the sources: its fields are asked for.
    own = _fields(name, classes) if name in classes else _fields_of(found.config_class())
    return sorted({*own, *(key for name in COMMON_CLASSES for key in _fields(name, classes))})


def launcher_flags() -> set[str]:
    """The flags of `accelerate launch`, without their dashes, with underscores."""
    tree = ast.parse(_source("accelerate", "commands/launch.py"))
    flags = {
        argument.value.lstrip("-").replace("-", "_")
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str) and argument.value.startswith("-")
    }
    return flags | set(_LAUNCHER_FLAGS)


def unknown_key_message(key: str, valid: Iterable[str]) -> str:
    """One line on a key that does not exist, with the nearest that does."""
    return f"`{key}` is not a known key.{did_you_mean(key, valid)}"


@cache
def source_classes() -> dict[str, SourceClass]:
    """Every class in the sources, by its name."""
    found = {}
    for package, path in _SOURCES:
        for node in ast.parse(_source(package, path)).body:
            if isinstance(node, ast.ClassDef):
                bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                found[node.name] = SourceClass(package, bases, dict(filter(None, map(_field, node.body))))
    return found


def _field(node: ast.stmt) -> tuple[str, ast.AnnAssign] | None:
    """A field and its name, if the statement is one that a constructor takes."""
    if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
        return None
    value, annotation = node.value, ast.unparse(node.annotation)
    if "ClassVar" in annotation:
        return None
    if isinstance(value, ast.Call):
        keywords = {keyword.arg: keyword.value for keyword in value.keywords}
        init = keywords.get("init")
        if isinstance(init, ast.Constant) and init.value is False:
            return None
    return node.target.id, node


def _fields(name: str, classes: dict[str, SourceClass]) -> list[str]:
    found = classes.get(name)
    return [] if found is None else [*found.fields, *(key for base in found.bases for key in _fields(base, classes))]


def _fields_of(config_class: type) -> list[str]:
    return [field.name for field in dataclasses.fields(config_class) if field.init]


def _source(package: str, path: str) -> str:
    return (package_folder(package) / path).read_text(encoding="utf-8")


def package_folder(package: str) -> Path:
    """Where an installed package lies, without importing it."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is not installed"
    return Path(spec.submodule_search_locations[0])
