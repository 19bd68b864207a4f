"""What a bench runs, and where its results lie: one JSON for each task, seed and arm."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import UsageError
from .arms import ARMS, BASELINE, BY_NAME, Arm, own_arm
from .tasks import TASKS


SETTINGS_FILE = "bench.json"


@dataclass(frozen=True)
class Sizes:
    """
    Args:
        seeds (`int`): Repetitions: other data, other starting weights, other draws.
        rows (`int`), held_out (`int`), teacher_rows (`int`): Rows for training, for measuring and for the teacher's training.
        arm_tokens (`int`): Tokens that every arm consumes: trained, generated, and read for labels.
        teacher_tokens (`int`): Tokens that a teacher is trained on, or those of the starting model, if they are more.
    """

    seeds: int = 5
    rows: int = 2000
    held_out: int = 1000
    teacher_rows: int = 6000
    arm_tokens: int = 600_000
    teacher_tokens: int = 1_500_000


#: Until SFT has learned the task and only its own mistakes are left.
START_TOKENS = {
    "fix": 1_500_000,
    "fix-reference": 3_000_000,
    "known-start": 1_000_000,
    "no-landmarks": 1_000_000,
    "walk": 300_000,
}
QUICK_TASKS = ("fix", "walk")


@dataclass(frozen=True)
class Cell:
    """A task under a seed: one starting model, and every arm from it."""

    task: str
    seed: int


@dataclass(frozen=True)
class Bench:
    """
    Args:
        output (`Path`): Where results go.
        tasks (`tuple[str, ...]`), arms (`tuple[Arm, ...]`), sizes ([`Sizes`]): What is run.
    """

    output: Path
    tasks: tuple[str, ...]
    arms: tuple[Arm, ...]
    sizes: Sizes

    def cells(self) -> list[Cell]:
        """Seed by seed, so that a bench that is stopped has whole repetitions."""
        return [Cell(task, seed) for seed in range(self.sizes.seeds) for task in self.tasks]

    def result_file(self, cell: Cell, arm: Arm) -> Path:
        return self.output / "results" / cell.task / f"seed-{cell.seed}" / f"{arm.name}.json"

    def missing(self, cell: Cell) -> list[Arm]:
        """Arms of a cell without a result."""
        return [arm for arm in self.arms if not self.result_file(cell, arm).is_file()]

    def results(self) -> list[dict[str, Any]]:
        """Every result that is there."""
        paths = [self.result_file(cell, arm) for cell in self.cells() for arm in self.arms]
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]

    def starts(self) -> list[dict[str, Any]]:
        """What was measured of the starting models."""
        paths = [self.output / "results" / cell.task / f"seed-{cell.seed}" / "start.json" for cell in self.cells()]
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]

    def settings(self) -> dict[str, Any]:
        """What results depend on: an output folder holds results of one setting alone."""
        return {"sizes": asdict(self.sizes), "start_tokens": START_TOKENS}


def plan_bench(
    output: Path,
    tasks: list[str] | None = None,
    methods: list[str] | None = None,
    seeds: int | None = None,
    quick: bool = False,
    tokens: int | None = None,
) -> Bench:
    """
    The bench that was asked for.

    Args:
        tasks (`list[str]`, *optional*): Names. Default: all; two of a quick bench.
        methods (`list[str]`, *optional*): Names, or methods of a user's own, see [`own_arm`]. Default: all, or the quick ones.
        tokens (`int`, *optional*): Tokens that every arm consumes.

    Raises:
        ValueError: for a name that does not exist, a method that cannot be imported, or a folder with other settings.
    """
    sizes = Sizes(seeds=2, rows=1000, held_out=500, arm_tokens=400_000) if quick else Sizes()
    asked = {"seeds": seeds, "arm_tokens": tokens}
    sizes = replace(sizes, **{name: value for name, value in asked.items() if value is not None})
    _check_names("task", tasks or [], TASKS)
    _check_names("method", [method for method in methods or [] if ":" not in method], BY_NAME)
    if methods:
        arms = [own_arm(method) if ":" in method else BY_NAME[method] for method in methods]
    else:
        arms = [arm for arm in ARMS if arm.is_quick or not quick]
    if BY_NAME[BASELINE] not in arms:
        arms.insert(0, BY_NAME[BASELINE])
    for arm in arms:
        arm.trainer_class()
    bench = Bench(output, tuple(tasks or (QUICK_TASKS if quick else TASKS)), tuple(arms), sizes)
    _check_folder(bench)
    return bench


def _check_names(what: str, names: list[str], known: dict[str, Any]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"There is no {what} `{unknown[0]}`. There are {', '.join(known)}.")


def _check_folder(bench: Bench) -> None:
    path = bench.output / SETTINGS_FILE
    if path.is_file() and (found := json.loads(path.read_text(encoding="utf-8"))) != (wanted := bench.settings()):
        other = [key for key in wanted["sizes"] if found["sizes"].get(key) != wanted["sizes"][key] and key != "seeds"]
        if other or found["start_tokens"] != wanted["start_tokens"]:
            raise UsageError(
                f"{bench.output} holds results of a bench with other sizes ({', '.join(other) or 'start_tokens'}). Choose "
                "another `--output`."
            )
    bench.output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(bench.settings(), indent=2), encoding="utf-8")
