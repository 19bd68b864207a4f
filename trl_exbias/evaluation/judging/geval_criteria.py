"""What G-Eval rates: criteria, a scale, and the steps to follow, from a YAML file."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ...core.errors import UsageError
from .requests import fingerprint


@dataclass(frozen=True)
class Criteria:
    """
    What a judge rates, and how.

    Args:
        name (`str`): Short name.
        description (`str`): The metric in a line.
        criteria (`tuple[str, ...]`): What to look at.
        scale (`tuple[int, int]`, defaults to `(1, 5)`): Lowest and highest score, whole numbers from 0.
        steps (`tuple[str, ...]`): The chain of thought: what to do, in order. Without any, the judge writes them, once.

    Raises:
        ValueError: for a field that is not of this form.
    """

    name: str
    description: str
    criteria: tuple[str, ...]
    scale: tuple[int, int] = (1, 5)
    steps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("name", "description"):
            if not isinstance(getattr(self, field), str) or not getattr(self, field).strip():
                raise UsageError(f"`{field}` must be a text.")
        for field in ("criteria", "steps", "scale"):
            if not isinstance(getattr(self, field), (list, tuple)):
                raise UsageError(f"`{field}` must be a list.")
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not self.criteria or not all(isinstance(line, str) for line in (*self.criteria, *self.steps)):
            raise UsageError(
                "`criteria` must be a list of one text or more, `steps` a list of texts (quote those with `: `)."
            )
        whole = len(self.scale) == 2 and all(type(end) is int for end in self.scale)
        if not whole or not 0 <= self.scale[0] < self.scale[1]:
            raise UsageError(f"`scale` is {list(self.scale)}; it must be two whole numbers from 0, e.g. [1, 5].")

    @property
    def id(self) -> str:
        """Name and version, of everything that the judge reads."""
        return f"{self.name}-{fingerprint([self.description, self.criteria, self.scale, self.steps])[:12]}"


def named_criteria() -> list[str]:
    """Names of the criteria in this package: the data sets of Pozzi 2025, Table 1."""
    files = (resources.files(__package__) / "criteria").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def read_criteria(source: "str | Path | Criteria") -> Criteria:
    """
    Criteria by name or from a YAML file with `name`, `description`, `criteria` and optionally `scale` and `steps`.

    Raises:
        ValueError: for an unknown name, or a file that is not of this form.
    """
    import yaml

    if isinstance(source, Criteria):
        return source
    if str(source) in named_criteria():
        text = (resources.files(__package__) / "criteria" / f"{source}.yaml").read_text(encoding="utf-8")
    elif Path(source).is_file():
        text = Path(source).read_text(encoding="utf-8")
    else:
        names = ", ".join(named_criteria())
        raise UsageError(
            f"{str(source)!r} are not criteria of G-Eval: give one of {names}, or the path of a .yaml file."
        )
    try:
        return _from_mapping(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"The criteria {source} cannot be used: {error}") from error


def _from_mapping(fields: Any) -> Criteria:
    known, needed = set(Criteria.__dataclass_fields__), {"name", "description", "criteria"}
    if not isinstance(fields, dict) or not needed <= set(fields) <= known:
        given = f"it has {', '.join(map(str, fields))}" if isinstance(fields, dict) else "it is not a mapping"
        raise UsageError(f"the file needs {', '.join(sorted(needed))} and may have scale, steps; {given}.")
    return Criteria(**fields)
