"""What a run has consumed, read from its run directory: tokens by sort, seconds by phase, peak memory."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


RUN_FILE, METRICS_FILE, ROLLOUTS, MANIFEST = "run.json", "metrics.jsonl", "rollouts", "manifest.json"
#: Written beside them by `exbias compare`: one record for each time that the run was started.
ATTEMPTS_FILE = "attempts.json"
#: Sorts of tokens, in the order in which they are reported.
SORTS = ("trained", "generated", "teacher")

_SECONDS = "seconds/"
# Of a rollout phase, and of scheduled sampling since the log before; of labels since the log before.
_GENERATED, _TEACHER = ("rollout/num_tokens", "mixing/num_tokens"), ("teacher/num_tokens",)
_DEVICE_PEAK = "memory/device_peak_bytes"
# Methods whose policy reads responses once more for labels, by their names in `run.json`.
_LABEL_THEMSELVES = ("RAC", "SPIN")


@dataclass(frozen=True)
class Compute:
    """
    Args:
        trained (`int`): Tokens read in training, over all epochs, without padding.
        generated (`int`): Tokens that the policy drew, or was led through, one decoding step each.
        teacher (`int`): Tokens read once more for labels: by a teacher, or by the policy itself (RAC, SPIN's reference).
        steps (`int`): Optimizer updates.
        seconds (`dict[str, float]`): By phase, as logged: `sft`, `joint`, `rollouts`, `teacher`, …
        wall_seconds (`float`, *optional*): From start to end, loading and saving included; of runs that `compare` started.
        host_bytes, device_bytes (`int`, *optional*): Peak memory of a process, and on a device; `None` where not known.
        derived (`tuple[str, ...]`): Sorts of tokens that the run did not log and that were worked out from its rollouts.
        sft_steps (`int`): Those of the SFT phase.
        attempts (`int`): How often the run was started; after an interruption, `seconds` lack what was lost.
    """

    trained: int
    generated: int
    teacher: int
    steps: int
    seconds: dict[str, float] = field(default_factory=dict)
    wall_seconds: float | None = None
    host_bytes: int | None = None
    device_bytes: int | None = None
    derived: tuple[str, ...] = ()
    attempts: int = 1
    sft_steps: int = 0

    @property
    def tokens(self) -> int:
        """Trained, generated and teacher tokens together: what is meant by equal compute in tokens."""
        return self.trained + self.generated + self.teacher

    @property
    def phase_seconds(self) -> float:
        """All phases together: what is meant by equal compute in seconds (loading and saving do not count)."""
        return sum(self.seconds.values())

    @property
    def seconds_an_update(self) -> tuple[float, float] | None:
        """
        Of an update behind the SFT phase: seconds of generating (and labelling) for it, and of training; `None` without one.

        What 003 calls the computation time for a global batch (Tables 8-9), offline generation shared out over the updates
        that use it.
        """
        updates = self.steps - self.sft_steps
        if updates <= 0 or "joint" not in self.seconds:
            return None
        training = self.seconds["joint"]
        return (self.phase_seconds - self.seconds.get("sft", 0.0) - training) / updates, training / updates


def read_compute(folder: str | Path) -> Compute:
    """
    The compute of the run in `folder`.

    Raises:
        ValueError: if there is no run, or it has logged no training.
    """
    folder = Path(folder)
    run, logs = read_run(folder), read_logs(folder)
    seconds: dict[str, float] = defaultdict(float)
    for entry in logs:
        for key, value in entry.items():
            if key.startswith(_SECONDS):
                seconds[key.removeprefix(_SECONDS)] += value
    # Within the rollouts' seconds already; and scheduled sampling's within those of the joint phase.
    seconds.pop("vllm_start", None)
    if "mixing" in seconds:
        seconds["joint"] = max(0.0, seconds["joint"] - seconds["mixing"])
    generated, teacher, derived = _sum(logs, _GENERATED), _sum(logs, _TEACHER), []
    if generated is None:
        generated = _rolled_out(folder)
        derived += ["generated"] * (generated > 0)
    if teacher is None:
        teacher = _labelled(run, logs, folder, generated)
        derived += ["teacher"] * (teacher > 0)
    attempts = read_attempts(folder)
    host = [attempt["host_bytes"] for attempt in attempts if attempt.get("host_bytes")]
    device = [int(entry[_DEVICE_PEAK]) for entry in logs if _DEVICE_PEAK in entry]
    return Compute(
        trained=trained_tokens(logs),
        generated=generated,
        teacher=teacher,
        steps=max(entry["step"] for entry in logs),
        seconds=dict(seconds),
        wall_seconds=sum(attempt["seconds"] for attempt in attempts) if attempts else None,
        host_bytes=max(host, default=None),
        device_bytes=max(device, default=None),
        derived=tuple(derived),
        attempts=max(1, len(attempts)),
        sft_steps=max((entry["step"] for entry in logs if f"{_SECONDS}sft" in entry), default=0),
    )


def read_run(folder: str | Path) -> dict[str, Any]:
    """
    `run.json` of a run directory.

    Raises:
        ValueError: if there is none.
    """
    path = Path(folder, RUN_FILE)
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no run: there is no {RUN_FILE} in it. Give the `output_dir` of a training command."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def read_logs(folder: str | Path) -> list[dict[str, Any]]:
    """
    Every log of a run.

    Raises:
        ValueError: if there is none.
    """
    path = Path(folder, METRICS_FILE)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    logs = []
    for number, line in enumerate(lines):
        try:
            logs.append(json.loads(line))
        except json.JSONDecodeError as error:
            # The last line of a run that is being written, or that died.
            if number < len(lines) - 1:
                raise ValueError(f"{path}, line {number + 1}, is not valid JSON: {error}.") from error
    if not logs:
        raise ValueError(f"{folder} has no logs ({METRICS_FILE}): the run has not trained yet.")
    return logs


def trained_tokens(logs: Iterable[dict[str, Any]], up_to_step: float = float("inf")) -> int:
    """Tokens read in training, up to an update: the logged count, which begins anew where a run was resumed."""
    total = last = 0
    for entry in logs:
        if "num_tokens" in entry and entry["step"] <= up_to_step:
            if entry["num_tokens"] < last:
                total += last
            last = entry["num_tokens"]
    return int(total + last)


def read_attempts(folder: str | Path) -> list[dict[str, Any]]:
    """How often, how long and in how much memory `exbias compare` has run this run; empty if it was not `compare`."""
    path = Path(folder, ATTEMPTS_FILE)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _sum(logs: list[dict[str, Any]], keys: Iterable[str]) -> int | None:
    # A run that is resumed where a phase has just ended says once more what that phase has made.
    found = {(key, entry["step"]): entry[key] for entry in logs for key in keys if key in entry}
    return int(sum(found.values())) if found else None


def _rolled_out(folder: Path) -> int:
    """Tokens of all rollouts on disk: by their manifests, else counted in their shards."""
    total = 0
    for iteration in sorted(folder.glob(f"{ROLLOUTS}/iteration-*")):
        stats = _lengths(iteration)
        total += int(stats[0]) if stats else sum(map(_count_tokens, iteration.glob("shard-*.parquet")))
    return total


def _lengths(iteration: Path) -> list[float] | None:
    """Tokens and rows that a manifest says were rolled out."""
    path = iteration / MANIFEST
    return json.loads(path.read_text())["stats"].get("rollout/length") if path.is_file() else None


def _count_tokens(shard: Path) -> int:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    lengths = pc.list_value_length(pq.read_table(shard, columns=["input_ids"])["input_ids"])
    return pc.sum(lengths).as_py() or 0


def _labelled(run: dict[str, Any], logs: list[dict[str, Any]], folder: Path, generated: int) -> int:
    """Tokens read for labels, as near as a run that has not logged them lets one come."""
    if run["method"] not in _LABEL_THEMSELVES:
        # A teacher reads whole trajectories: H + T tokens.
        length = sum(run["config"].get(key) or 0 for key in ("context_length", "rollout_length"))
        return (_sum(logs, ("teacher/scored",)) or 0) * length
    rows = sum(stats[1] for stats in map(_lengths, folder.glob(f"{ROLLOUTS}/iteration-*")) if stats)
    passes = run["rows"] * (run["config"].get("sft_epochs") or 0)
    sft = max((entry["step"] for entry in logs if f"{_SECONDS}sft" in entry), default=0)
    # Of a row with its gold response, from the SFT phase; where there was none, contexts are left out.
    row = trained_tokens(logs, up_to_step=sft) / passes if passes and sft else 0.0
    if run["method"] == "RAC":  # its response behind question and reference
        return round(generated + rows * row)
    # SPIN: the gold response behind its context, and its own, about as long, behind the same.
    return round(generated + rows * (row + max(0.0, row - generated / rows))) if rows and row else generated
