"""A plan as text, and as JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

from .estimate import Estimate
from .memory import GIB
from .phases import PlannedPhase
from .placement import Placement
from .rollout_memory import LAID_OUT


_COMPONENTS = (
    "weights",
    "gradients",
    "optimizer",
    "buffers",
    "activations",
    "LM head",
    "KV cache",
    LAID_OUT,
    "step",
    "teacher",
    "vLLM",
)

_RARE = ("read for labels", "drawn or read in steps")


@dataclass
class Plan:
    """
    What a run will do and need.

    Args:
        placement ([`Placement`]): Devices.
        phases (`list[PlannedPhase]`): Steps and tokens.
        data (`dict`): What is known of the rows.
        model (`str`, *optional*): In words.
        estimate ([`Estimate`], *optional*): Memory; `None` if the model is not available.
        disk (`dict[str, int]`): Bytes by what is written.
        free_disk (`int`, *optional*): Bytes free where it is written.
        device_bytes (`int`, *optional*): Memory of one device, where known.
    """

    placement: Placement
    phases: list[PlannedPhase]
    data: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    estimate: Estimate | None = None
    disk: dict[str, int] = field(default_factory=dict)
    free_disk: int | None = None
    device_bytes: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: bytes, rows, steps and tokens as numbers, `null` where not known."""
        memory = [] if self.estimate is None else self.estimate.phases
        return {
            "placement": asdict(self.placement),
            "data": self.data,
            "model": None
            if self.estimate is None
            else {
                "name": self.model,
                "parameters": self.estimate.facts.num_parameters,
                "trained": self.estimate.facts.num_trained,
            },
            "phases": [asdict(phase) for phase in self.phases],
            "memory_bytes": [
                {"phase": phase.name, "when": phase.peak.name, "total": phase.peak.total, **phase.peak.parts}
                for phase in memory
            ],
            "device_bytes": self.device_bytes,
            "disk_bytes": self.disk,
            "free_disk_bytes": self.free_disk,
        }

    def __str__(self) -> str:
        parts = [f"Plan for {self.placement}", self._facts(), self._steps()]
        if self.estimate is not None and self.estimate.phases:
            parts.append(self._memory())
        if self.disk:
            parts.append(self._disk())
        return "\n\n".join(part for part in parts if part)

    def _facts(self) -> str:
        lines = [f"model   {self.model}"] if self.model else []
        rows = self.data.get("rows")
        words = "rows unknown" if rows is None else f"{'at most ' * self.data['is_bound']}{rows:,} rows"
        if self.data.get("mean_context") is not None:
            words += (
                f"; the first {self.data['rows_seen']} have {self.data['mean_context']:.0f} context and "
                f"{self.data['mean_response']:.0f} response tokens on average"
            )
        return "\n".join([*lines, f"data    {words}"])

    def _steps(self) -> str:
        header: tuple[str, ...] = ("phase", "rows", "epochs", "steps", "tokens", "rolled-out rows", "rolled-out tokens")
        header = (*header, "read for labels", "drawn or read in steps", "batch")
        lines: list[tuple[str, ...]] = [
            (
                phase.name,
                _number(phase.rows),
                f"{phase.epochs:g}",
                _number(phase.steps),
                _short(phase.tokens),
                _number(phase.rollout_rows),
                _short(phase.rollout_tokens),
                _short(phase.label_tokens),
                _short(phase.online_tokens),
                "?" if phase.layout is None else f"{phase.layout.rows} × {phase.layout.length}",
            )
            for phase in self.phases
        ]
        # Few methods label, and fewer do anything in a step besides training.
        kept = [i for i, name in enumerate(header) if name not in _RARE or {line[i] for line in lines} - {"0", "?"}]
        header, *lines = (tuple(row[i] for i in kept) for row in (header, *lines))
        known = [phase.steps for phase in self.phases if phase.steps is not None]
        total = f"\n{sum(known):,} steps in all" if len(known) == len(self.phases) >= 2 else ""
        return _table(header, lines) + total

    def _memory(self) -> str:
        phases = [] if self.estimate is None else self.estimate.phases
        names = [name for name in _COMPONENTS if any(phase.peak.parts.get(name) for phase in phases)]
        header = ("GiB on each device", *names, "peak", "when")
        lines = [
            (
                phase.name,
                *(_gib(phase.peak.parts.get(name, 0)) for name in names),
                _gib(phase.peak.total),
                phase.peak.name,
            )
            for phase in phases
        ]
        return _table(header, lines, left_last=True)

    def _disk(self) -> str:
        words = ", ".join(f"{name} {_gib(size)}" for name, size in self.disk.items() if size)
        free = "" if self.free_disk is None else f"; free: {_gib(self.free_disk)}"
        return f"disk, GiB   {words}; in all: {_gib(sum(self.disk.values()))}{free}"


def _table(header: tuple[str, ...], lines: list[tuple[str, ...]], left_last: bool = False) -> str:
    widths = [max(len(row[i]) for row in (header, *lines)) for i in range(len(header))]
    last = len(header) - 1

    def line(cells: tuple[str, ...]) -> str:
        padded = [
            cell.ljust(width) if i == 0 or (left_last and i == last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join(map(line, (header, *lines)))


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _short(value: int | None) -> str:
    if value is None:
        return "?"
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return str(value)


def _gib(size: int) -> str:
    if not size:
        return "–"
    value = size / GIB
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.005 else "<0.01"
