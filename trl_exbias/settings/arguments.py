"""A training command's arguments with all that is wrong with them, where a command itself stops at the first kind of mistake."""

from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any, NoReturn

from .findings import Findings
from .methods import method_named
from .phase_plan import PhasePlan
from .recipe import RecipeError, value_problems


@dataclass(frozen=True)
class Arguments:
    """
    Args:
        plan ([`PhasePlan`]): How the method is planned.
        data ([`DataArguments`]), model ([`~trl.ModelConfig`]), mixture ([`~trl.DatasetMixtureConfig`]): As for the command.
        config ([`IterativeSFTConfig`]): The method's configuration, without what belongs to the machine it will run on.
        asked (`SimpleNamespace`): What was asked of that machine: `use_cpu`, `bf16`, `fp16`, `deepspeed`.
        are_valid (`bool`): Whether nothing is wrong with the configuration itself.
    """

    plan: PhasePlan
    data: Any
    config: Any
    model: Any
    mixture: Any
    asked: SimpleNamespace
    are_valid: bool


def read_arguments(findings: Findings, method: str, overrides: list[str], recipe: dict[str, Any]) -> Arguments:
    """
    The arguments of a recipe and a command line, with every problem of theirs as an error about `values`.

    A value that cannot be is left at its default, and a class with impossible combinations is taken as it is, so that what
    does not depend on them can be checked all the same.
    """
    from trl import DatasetMixtureConfig, ModelConfig, TrlParser

    from .data_arguments import DataArguments

    found = method_named(method)
    config_class = found.config_class()

    class Parser(TrlParser):
        def error(self, message: str) -> NoReturn:
            raise RecipeError("command line", [message])

    parser = Parser((DataArguments, config_class, ModelConfig, DatasetMixtureConfig))
    problems = dict(value_problems(parser, recipe))
    for problem in problems.values():
        findings.error("values", problem)
    parser.set_defaults_with_config(**{k: v for k, v in recipe.items() if k not in problems and k != "env"})
    usable: list[str] = []
    for group in _flags(overrides):
        try:
            parser.parse_known_args(group)
            usable += group
        except RecipeError as error:
            findings.error("values", error.problems[0])
    values = vars(parser.parse_known_args(usable)[0])
    config, are_valid = _make_config(findings, config_class, values)
    return Arguments(
        plan=found.phase_plan(),
        data=_make(findings, DataArguments, values),
        config=config,
        model=_make(findings, ModelConfig, values),
        mixture=_make(findings, DatasetMixtureConfig, values),
        asked=SimpleNamespace(**{name: values[name] for name in ("use_cpu", "bf16", "fp16", "deepspeed")}),
        are_valid=are_valid,
    )


def _flags(argv: list[str]) -> list[list[str]]:
    """A command line flag by flag, each with its values."""
    groups: list[list[str]] = []
    for argument in argv:
        if argument.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(argument)
    return groups


def _own(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(cls) if field.init}


def _make(findings: Findings, cls: type, values: dict[str, Any]) -> Any:
    try:
        return cls(**_own(cls, values))
    except (ValueError, TypeError) as error:
        findings.error("values", str(error))
        return SimpleNamespace(**_own(cls, values))


def _make_config(findings: Findings, cls: type, values: dict[str, Any]) -> tuple[Any, bool]:
    raw: Any = object.__new__(cls)
    raw.__dict__.update(_own(cls, values))
    problems = raw.problems()
    for problem in problems:
        findings.error("values", problem)
    if problems:
        return raw, False
    # This machine need not be the one that trains: whether that one has a GPU, bf16 or DeepSpeed cannot be told here.
    elsewhere = {"use_cpu": True, "tf32": None, "deepspeed": None, "fsdp": None, "fsdp_config": None}
    try:
        return cls(**{**_own(cls, values), **elsewhere}), True
    except (ValueError, TypeError, ImportError) as error:
        findings.error("values", str(error))
        return raw, False
