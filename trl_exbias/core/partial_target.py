"""Soft labels at some of the scored positions: the others have hard labels alone."""

from contextlib import AbstractContextManager, nullcontext

import torch

from .soft_targets import SoftTarget, TargetChunk


class PartialTarget:
    """
    Soft labels of some positions among N.

    Where there are none, the loss and its gradient are zero.

    Args:
        target ([`SoftTarget`]): Targets of the positions that have them, in order.
        has_labels (`torch.Tensor` of shape `(N,)`): Which those are.
    """

    def __init__(self, target: SoftTarget, has_labels: torch.Tensor):
        self.target, self.vocab_size = target, target.vocab_size
        self.has_labels = has_labels
        self._before = [0, *has_labels.cumsum(0).tolist()]

    def ahead(self, rows: slice) -> AbstractContextManager[None]:
        return self.target.ahead(self._stretch(rows)) if self._here(rows).any() else nullcontext()

    def chunk(self, rows: slice, policy_log_probs: torch.Tensor, temperature: float) -> TargetChunk:
        here, policy = self._here(rows), policy_log_probs.exp()
        chunk = TargetChunk(policy, policy.new_zeros(len(policy)), policy.new_zeros(len(policy)))
        if here.any():
            found = self.target.chunk(self._stretch(rows), policy_log_probs[here], temperature)
            for whole, part in zip(vars(chunk).values(), vars(found).values(), strict=True):
                whole[here] = part
        return chunk

    def log_ratios(self, rows: slice, policy_log_probs: torch.Tensor, temperature: float) -> torch.Tensor:
        here, ratios = self._here(rows), torch.zeros_like(policy_log_probs)
        if here.any():
            ratios[here] = self.target.log_ratios(self._stretch(rows), policy_log_probs[here], temperature)
        return ratios

    def _here(self, rows: slice) -> torch.Tensor:
        return self.has_labels[rows]

    def _stretch(self, rows: slice) -> slice:
        """Which labels those of some positions are."""
        stop = min(rows.stop, len(self.has_labels))
        return slice(self._before[rows.start], self._before[stop])
