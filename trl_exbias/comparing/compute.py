"""What a run has consumed, read from its run directory: tokens by sort, seconds by phase, peak memory."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import UsageError


RUN_FILE, METRICS_FILE = "run.json", "metrics.jsonl"
# Rollouts of a policy that a resumed run came back to with other weights: spent, and no longer in its logs.
_SET_ASIDE = "rollouts/*.superseded-*/manifest.json"
#: Written next to them by `exbias compare`: one record for each time that the run was started.
ATTEMPTS_FILE = "attempts.json"
#: Sorts of tokens, in the order in which they are reported.
SORTS = ("trained", "generated", "teacher")

_SECONDS = "seconds/"
# Logged for a rollout phase, and by scheduled sampling since the previous log; for a phase of labelling.
_GENERATED, _TEACHER = ("rollout/num_tokens", "mixing/num_tokens"), ("teacher/num_tokens",)
_DEVICE_PEAK = "memory/device_peak_bytes"


@dataclass(frozen=True)
class Compute:
    """
    Args:
        trained (`int`): Tokens read in training, over all epochs, without padding.
        generated (`int`): Tokens that the policy drew, or was led through, one decoding step each.
        teacher (`int`): Tokens read once more for labels: by a teacher, or by the policy itself (RAC, SPIN's reference).
        steps (`int`): Optimizer updates.
        seconds (`dict[str, float]`): By phase, as logged: `sft`, `joint`, `rollouts`, `teacher`, …
        wall_seconds (`float`, *optional*): From start to end, loading and saving included, for runs that `compare` started.
        host_bytes, device_bytes (`int`, *optional*): Peak memory of a process, and on a device; `None` where not known.
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
        Seconds of generating (and labelling) for an update after the SFT phase, and of training it; `None` without one.

        What Cen 2024 calls the computation time for a global batch (Tables 8-9), offline generation shared out over the updates
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
    read_run(folder)  # a run, and not any folder with logs
    logs = read_logs(folder)
    seconds: dict[str, float] = defaultdict(float)
    for entry in logs:
        for key, value in entry.items():
            if key.startswith(_SECONDS):
                seconds[key.removeprefix(_SECONDS)] += value
    # Within the rollouts' seconds already; and scheduled sampling's within those of the joint phase.
    seconds.pop("vllm_start", None)
    if "mixing" in seconds:
        seconds["joint"] = max(0.0, seconds["joint"] - seconds["mixing"])
    attempts = read_attempts(folder)
    host = [attempt["host_bytes"] for attempt in attempts if attempt.get("host_bytes")]
    device = [int(entry[_DEVICE_PEAK]) for entry in logs if _DEVICE_PEAK in entry]
    return Compute(
        trained=trained_tokens(logs),
        generated=_sum(logs, _GENERATED) + _set_aside(folder, "rollout/length"),
        teacher=_sum(logs, _TEACHER) + _set_aside(folder, "rollout/label_length"),
        steps=max(entry["step"] for entry in logs),
        seconds=dict(seconds),
        wall_seconds=sum(attempt["seconds"] for attempt in attempts) if attempts else None,
        host_bytes=max(host, default=None),
        device_bytes=max(device, default=None),
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
        raise UsageError(
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
                raise UsageError(f"{path}, line {number + 1}, is not valid JSON: {error}.") from error
    if not logs:
        raise UsageError(f"{folder} has no logs ({METRICS_FILE}): the run has not trained yet.")
    return logs


def trained_tokens(logs: Iterable[dict[str, Any]], up_to_step: float = float("inf")) -> int:
    """Tokens read in training, up to an update: the logged count, which begins again where a run was resumed."""
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


def _sum(logs: list[dict[str, Any]], keys: Iterable[str]) -> int:
    # A run that is resumed where a phase has just ended says once more what that phase has made.
    found = {(key, entry["step"]): entry[key] for entry in logs for key in keys if key in entry}
    return int(sum(found.values()))


def _set_aside(folder: Path, stat: str) -> int:
    manifests = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(_SET_ASIDE)]
    return int(sum(manifest["stats"].get(stat, (0, 0))[0] for manifest in manifests if "stats" in manifest))
