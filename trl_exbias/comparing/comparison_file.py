"""The file that describes a comparison; see `docs/comparing.md`."""

import itertools
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..settings.keys import launcher_flags, unknown_key_message, valid_keys
from ..settings.methods import method_named, methods
from ..settings.phase_plan import PhasePlan
from ..settings.recipe import RecipeError
from .evaluate_options import check_options


#: Plain SFT: BASH without anything mixed.
SFT = "sft"
EQUALITIES = ("tokens", "seconds", "none")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OURS = ("method", "sweep")
# Set by the comparison itself.
_SET_BY_US = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "push_to_hub")


@dataclass(frozen=True)
class PlannedRun:
    """
    One training run.

    Args:
        name (`str`): Its folder's, and that of its row in the report.
        method (`str`): As in the file: a training command or `sft`.
        own (`dict`): The keys by which it differs from the others.
        keys (`dict`): All keys of its recipe, those of `base` included.
    """

    name: str
    method: str
    own: dict[str, Any]
    keys: dict[str, Any]

    @property
    def trains_with(self) -> str:
        """The method whose command trains it."""
        return "bash" if self.method == SFT else self.method

    @property
    def command(self) -> list[str]:
        """The words after `exbias` that train it."""
        return method_named(self.trains_with).command

    @property
    def plan(self) -> PhasePlan:
        """How its phases are planned."""
        return method_named(self.trains_with).phase_plan()


@dataclass(frozen=True)
class Comparison:
    """
    A comparison file, read and checked.

    Args:
        name (`str`): Its title.
        runs (`tuple[PlannedRun, ...]`): In the order of the report; differences are to the first.
        evaluate (`dict`): Options of `exbias evaluate`, by their names.
        equal (`str`): What all runs get the same amount of: `tokens`, `seconds`, or `none`: lengths are as declared.
        budget (`str` or `float`, *optional*): The run whose total is everyone's, or the total itself. Default: the run that
            is expected to take most.
        tolerance (`float`): Share of the budget by which a total may miss it.
        allow (`tuple[str, ...]`): Settings in which runs may differ; the report says so.
        untrained (`bool`): Whether the model that the runs begin from is evaluated too.
        headline (`tuple[str, ...]`): Figures of the decision table, as `suite/figure`. Default: the first of each suite.
        output_dir (`str`): Where everything goes.
        base (`dict`): The keys that all runs share.
        demo (`dict`, *optional*): The embedded model and word problems, in place of a model and data: how many, which seed.
        launch (`dict`): Flags of `accelerate launch` for every run: `accelerate_config`, `num_processes`, …
    """

    name: str
    runs: tuple[PlannedRun, ...]
    evaluate: dict[str, Any]
    equal: str = "tokens"
    budget: str | float | None = None
    tolerance: float = 0.05
    allow: tuple[str, ...] = ()
    untrained: bool = True
    headline: tuple[str, ...] = ()
    output_dir: str = ""
    base: dict[str, Any] = field(default_factory=dict)
    demo: dict[str, Any] | None = None
    launch: dict[str, Any] = field(default_factory=dict)


def read_content(path: str | Path, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    What a comparison file says, with the command line's keys in it; see [`read_comparison`].

    Raises:
        RecipeError: if it cannot be read or is not a mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(str(path), [f"cannot be read: {error}"]) from error
    if not isinstance(content, dict):
        raise RecipeError(str(path), ["a comparison is a mapping of keys to values."])
    for key, value in (overrides or {}).items():
        part, dot, option = key.partition(".")
        place, key = (part, option) if dot else ("base", key)
        if isinstance(content.get(place) or {}, dict):
            content[place] = {**(content.get(place) or {}), key: value}
    return content


def read_comparison(path: str | Path, overrides: dict[str, Any] | None = None) -> Comparison:
    """
    Reads a comparison file.

    Args:
        overrides (`dict`, *optional*): Keys of `base` (or, as `evaluate.KEY`, of `evaluate`) that win over the file's.

    Raises:
        RecipeError: with everything that is wrong with it.
    """
    content = read_content(path, overrides)
    problems: list[str] = []
    known = [f.name for f in fields(Comparison)] + ["sweep"]
    problems += [unknown_key_message(key, known) for key in content if key not in known]
    name, base = content.get("name", Path(path).stem), content.get("base") or {}
    if not isinstance(name, str) or not name:
        problems.append(f"`name` must be a text, got {name!r}.")
    if not isinstance(base, dict):
        problems.append("`base` must be a mapping: the keys that all runs share.")
        base = {}
    runs = _runs(content, base, problems)
    options = _options(content, runs, problems)
    launch = content.get("launch") or {}
    if not isinstance(launch, dict):
        problems.append(f"`launch` must be a mapping of flags of `accelerate launch` to their values, got {launch!r}.")
    else:
        flags = launcher_flags() - {"config", "help", "h", "m"}
        problems += [f"`launch`: {unknown_key_message(key, flags)}" for key in launch if key not in flags]
    if content.get("demo") is not None:
        from .demo_inputs import check_demo

        problems += check_demo(content["demo"], base, content.get("evaluate") or {})
    if problems:
        raise RecipeError(str(path), problems)
    output_dir = content.get("output_dir") or f"runs/compare-{Path(path).stem}"
    return Comparison(
        name, tuple(runs), base=base, output_dir=output_dir, demo=content.get("demo"), launch=launch, **options
    )


def _options(content: dict[str, Any], runs: list[PlannedRun], problems: list[str]) -> dict[str, Any]:
    """The keys that are neither runs nor their base, checked."""
    defaults = {f.name: f.default for f in fields(Comparison)}
    names = ("equal", "budget", "tolerance", "allow", "untrained", "headline")
    found: dict[str, Any] = {key: content[key] if content.get(key) is not None else defaults[key] for key in names}
    found["evaluate"] = content.get("evaluate") or {}
    for key in ("allow", "headline"):
        value = found[key]
        found[key] = (value,) if isinstance(value, str) else tuple(value)
    if content.get("equal") is False:  # YAML reads `no` so, and someone will write it
        found["equal"] = "none"
    for key, is_valid, allowed in (
        ("evaluate", isinstance(found["evaluate"], dict), "a mapping of options of `exbias evaluate`"),
        ("equal", found["equal"] in EQUALITIES, f"one of {', '.join(EQUALITIES)}"),
        ("tolerance", _is_number(found["tolerance"]) and 0 < found["tolerance"] < 1, "a share between 0 and 1"),
        ("untrained", isinstance(found["untrained"], bool), "true or false"),
        (
            "budget",
            found["budget"] is None
            or found["budget"] in [run.name for run in runs]
            or (_is_number(found["budget"]) and found["budget"] > 0),
            f"the name of a run ({', '.join(run.name for run in runs)}), or how many {found['equal']}",
        ),
    ):
        if not is_valid:
            problems.append(f"`{key}` must be {allowed}, got {found[key]!r}.")
    if isinstance(found["evaluate"], dict):
        problems += check_options({"suites": (), **found["evaluate"]})
    if found["equal"] not in EQUALITIES[:2]:
        if found["budget"] is not None:
            problems.append("`budget` has no meaning with `equal: none`: leave it out.")
    else:
        problems += [
            f"{run.name}: `max_steps` is what `equal: {found['equal']}` sets. Leave it out, or write `equal: none`."
            for run in runs
            if run.keys.get("max_steps", -1) > 0
        ]
    return found


def _is_method(given: Any) -> bool:
    return isinstance(given, str) and (given in (SFT, *methods()) or ":" in given)


def _runs(content: dict[str, Any], base: dict[str, Any], problems: list[str]) -> list[PlannedRun]:
    declared, runs = content.get("runs"), []
    if not isinstance(declared, dict) or not declared:
        problems.append("`runs` is missing: for each run its name, and under it `method` and its own keys.")
        return []
    for key in _SET_BY_US:
        if key in base:
            problems.append(f"`base`: `{key}` is set by the comparison itself. Leave it out.")
    for name, own in declared.items():
        given = own.get("method") if isinstance(own, dict) else None
        if not _is_method(given):
            known = ", ".join([SFT, *methods()])
            problems.append(f"{name}: `method` must be one of {known}, or `module:Trainer`, got {given!r}.")
            continue
        for label, values in _grid(name, content.get("sweep"), own.get("sweep"), problems):
            settings = {key: value for key, value in own.items() if key not in _OURS} | values
            runs.append(_run(f"{name}{label}", own["method"], settings, base, problems))
    names = [run.name for run in runs]
    problems += [f"two runs are called `{name}`." for name in sorted({n for n in names if names.count(n) > 1})]
    problems += [
        f"`{name}` cannot name a run, which has a folder of that name: use letters, digits, `.`, `_` and `-`."
        for name in names
        if not _NAME.fullmatch(name)
    ]
    if "untrained" in names:
        problems.append("`untrained` is the name of the model that all begin from; give the run another name.")
    return runs


def _run(name: str, method: str, own: dict[str, Any], base: dict[str, Any], problems: list[str]) -> PlannedRun:
    for key in (*_SET_BY_US, "beta" if method == SFT else ""):
        if key in own:
            reason = "plain SFT has none" if key == "beta" else "it is set by the comparison itself"
            problems.append(f"{name}: `{key}` cannot be given: {reason}.")
    # A log at every step, so that no token is left out of the count; nothing sent anywhere unless asked for.
    keys = {"logging_steps": 1, "report_to": "none", **base, **own}
    if method == SFT:
        # One objective throughout: one schedule of the learning rate, unless asked otherwise.
        keys |= {"beta": 0.0, "restart_lr_schedule": own.get("restart_lr_schedule", False)}
    run = PlannedRun(name, method, own, keys)
    known = [*valid_keys(run.trains_with), "env"]
    problems += [f"{name}: {unknown_key_message(key, known)}" for key in keys if key not in known]
    return run


def _grid(name: str, *sweeps_and_problems: Any) -> list[tuple[str, dict[str, Any]]]:
    """Every combination of the values of some sweeps: what it adds to a run's name, and the keys it sets."""
    *sweeps, problems = sweeps_and_problems
    axes: list[list[tuple[str, dict[str, Any]]]] = []
    for sweep in sweeps:
        if sweep is None:
            continue
        if not isinstance(sweep, dict):
            problems.append(f"{name}: `sweep` must be a mapping of keys to their values, got {sweep!r}.")
            continue
        for key, values in sweep.items():
            if isinstance(values, dict) and values:  # by the label to give them
                several = all(isinstance(value, dict) for value in values.values())
                axes.append([(f"-{label}", value if several else {key: value}) for label, value in values.items()])
            elif isinstance(values, list) and values:
                axes.append([(f"-{key}-{value}", {key: value}) for value in values])
            else:
                problems.append(f"{name}: `sweep: {key}` must be a list of values, or a mapping of labels to values.")
    combinations = []
    for combination in itertools.product(*axes):
        keys = {key: value for _, setting in combination for key, value in setting.items()}
        combinations.append(("".join(label for label, _ in combination), keys))
    return combinations


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
