"""What a rollout phase reports of itself: numerators and denominators, divided once."""

from collections import defaultdict


class RolloutStats:
    """Numerators and denominators of a phase's metrics, summed over rows, shards and processes before they are divided."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, name: str, total: float, count: float) -> None:
        """Adds to metric `name` = Σ total / Σ count."""
        self._sums[name][0] += total
        self._sums[name][1] += count

    def clear(self) -> None:
        self._sums.clear()

    def as_dict(self) -> dict[str, list[float]]:
        return {name: list(sums) for name, sums in self._sums.items()}


def means(stats: dict[str, list[float]]) -> dict[str, float]:
    """Metrics from their numerators and denominators."""
    return {name: total / count for name, (total, count) in stats.items() if count}
