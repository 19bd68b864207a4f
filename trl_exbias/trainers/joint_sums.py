"""What a joint phase logs: sums kept on the device, reduced over the processes, divided once."""

import torch
from accelerate import Accelerator


class JointSums:
    """
    Sums since the last log: losses and label counts of each kind, entropy, correct tokens, tokens read.

    Args:
        kinds (`tuple[str, ...]`): Names of the branch kinds.
    """

    def __init__(self, kinds: tuple[str, ...]):
        self.kinds = kinds
        self._sums: torch.Tensor | None = None

    def add(
        self,
        losses: torch.Tensor,
        counts: torch.Tensor,
        entropy: torch.Tensor,
        correct: torch.Tensor,
        tokens: torch.Tensor,
    ) -> None:
        """Adds a micro-batch: `losses` and `counts` of shape `(kinds,)`, the rest scalars."""
        parts = [losses, counts, torch.stack([entropy.double(), correct.double(), tokens.double()])]
        sums = torch.cat([part.detach().double() for part in parts])
        self._sums = sums if self._sums is None else self._sums + sums

    def pop(self, accelerator: Accelerator) -> tuple[dict[str, float], int]:
        """The metrics and the number of tokens read since the last call, over all processes; empty if nothing was added."""
        if self._sums is None:
            return {}, 0
        sums = accelerator.reduce(self._sums, reduction="sum").tolist()
        self._sums = None
        n = len(self.kinds)
        losses, counts, (entropy, correct, tokens) = sums[:n], sums[n : 2 * n], sums[2 * n :]
        metrics = {
            f"loss/{k}": loss / count for k, loss, count in zip(self.kinds, losses, counts, strict=True) if count
        }
        labels = max(sum(counts), 1)
        return metrics | {"entropy": entropy / labels, "mean_token_accuracy": correct / labels}, int(tokens)
