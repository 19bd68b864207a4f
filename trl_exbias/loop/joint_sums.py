"""What a joint phase logs: sums kept on the device, reduced over the processes, divided once."""

import torch
from accelerate import Accelerator


class JointSums:
    """
    Sums since the last log: losses and label counts of each kind, tokens read, and whatever else is averaged.

    Args:
        kinds (`tuple[str, ...]`): Names of the branch kinds.
    """

    def __init__(self, kinds: tuple[str, ...]):
        self.kinds = kinds
        self._names: tuple[str, ...] = ()
        self._sums: torch.Tensor | None = None

    def add(
        self,
        losses: torch.Tensor,
        counts: torch.Tensor,
        tokens: torch.Tensor,
        labels: torch.Tensor,
        sums: dict[str, torch.Tensor],
    ) -> None:
        """
        Adds a micro-batch.

        Args:
            losses (`torch.Tensor` of shape `(kinds,)`), counts (`torch.Tensor` of shape `(kinds,)`): Sum and count for each kind.
            tokens, labels (`torch.Tensor`): Scalars: tokens read, labels scored.
            sums (`dict[str, torch.Tensor]`):
                By the name of a metric: its scalar sum over all labels, or its sum and what that is divided by, of shape `(2,)`.
        """
        self._names = tuple(sums)
        ratios = [value if value.dim() else torch.stack([value, labels.to(value)]) for value in sums.values()]
        # Apple's GPUs have no float64; elsewhere the sums of a long interval keep every count exact.
        dtype = torch.float32 if losses.device.type == "mps" else torch.float64
        new = torch.cat([part.detach().to(dtype).flatten() for part in (losses, counts, tokens, *ratios)])
        self._sums = new if self._sums is None else self._sums + new

    def pop(self, accelerator: Accelerator) -> tuple[dict[str, float], int]:
        """The metrics and the number of tokens read since the last call, over all processes; empty if nothing was added."""
        if self._sums is None:
            return {}, 0
        sums = accelerator.reduce(self._sums, reduction="sum").tolist()
        self._sums = None
        n = len(self.kinds)
        losses, counts, (tokens, *ratios) = sums[:n], sums[n : 2 * n], sums[2 * n :]
        metrics = {
            f"loss/{k}": loss / count for k, loss, count in zip(self.kinds, losses, counts, strict=True) if count
        }
        means = {
            name: total / max(count, 1)
            for name, total, count in zip(self._names, ratios[::2], ratios[1::2], strict=True)
        }
        return metrics | means, int(tokens)
