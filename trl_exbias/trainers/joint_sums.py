"""What a joint phase logs: sums kept on the device, reduced over the processes, divided once."""

import torch
from accelerate import Accelerator


class JointSums:
    """
    Sums since the last log: losses and label counts of each kind, tokens read, and whatever else is averaged over labels.

    Args:
        kinds (`tuple[str, ...]`): Names of the branch kinds.
    """

    def __init__(self, kinds: tuple[str, ...]):
        self.kinds = kinds
        self._names: tuple[str, ...] = ()
        self._sums: torch.Tensor | None = None

    def add(self, losses: torch.Tensor, counts: torch.Tensor, tokens: torch.Tensor, **per_label: torch.Tensor) -> None:
        """
        Adds a micro-batch.

        Args:
            losses (`torch.Tensor` of shape `(kinds,)`), counts (`torch.Tensor` of shape `(kinds,)`): Of each kind.
            tokens (`torch.Tensor`): Scalar, tokens read.
            **per_label (`torch.Tensor`): Scalar sums over all labels, by the name of the metric.
        """
        self._names = tuple(per_label)
        scalars = torch.stack([tokens.double(), *(value.double() for value in per_label.values())])
        sums = torch.cat([part.detach().double() for part in (losses, counts, scalars)])
        self._sums = sums if self._sums is None else self._sums + sums

    def pop(self, accelerator: Accelerator) -> tuple[dict[str, float], int]:
        """The metrics and the number of tokens read since the last call, over all processes; empty if nothing was added."""
        if self._sums is None:
            return {}, 0
        sums = accelerator.reduce(self._sums, reduction="sum").tolist()
        self._sums = None
        n = len(self.kinds)
        losses, counts, (tokens, *per_label) = sums[:n], sums[n : 2 * n], sums[2 * n :]
        metrics = {
            f"loss/{k}": loss / count for k, loss, count in zip(self.kinds, losses, counts, strict=True) if count
        }
        labels = max(sum(counts), 1)
        return metrics | {name: value / labels for name, value in zip(self._names, per_label, strict=True)}, int(tokens)
