"""Losses as pure functions. All in nats; a mean is taken over the label tokens of the whole global batch.

Shapes: B rows, L positions, K branch kinds, T terms.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LossTerm:
    """
    One term of a joint objective: a weight, the branch kinds whose label tokens form **one** mean, and what it is divided by.

    `J_SFT + J_BASH` (Cen 2024, Algorithm 1) is two terms, each with its own mean; a loss over a union of data sets
    (DaD-DAgger's D_T) is one term with several kinds.
    """

    kinds: tuple[str, ...]
    weight: float = 1.0

    def count(self, batch: dict[str, torch.Tensor], kinds: tuple[str, ...]) -> torch.Tensor:
        """What the term's sum is divided by, of a micro-batch: its labels. A term of another unit says what it counts."""
        counts = count_labels(batch["branch_kinds"], len(kinds))
        return counts[[kinds.index(kind) for kind in self.kinds]].sum()


def count_labels(branch_kinds: torch.Tensor, num_kinds: int) -> torch.Tensor:
    """Number of label tokens of each kind: int64 of shape `(K,)`, from kind indices of any shape (-1: no label)."""
    return torch.bincount(branch_kinds[branch_kinds >= 0].flatten(), minlength=num_kinds)


def sum_by_kind(values: torch.Tensor, branch_kinds: torch.Tensor, num_kinds: int) -> torch.Tensor:
    """Sums `values` `(B, L)` over the positions of each kind: shape `(K,)`."""
    selected = branch_kinds >= 0
    sums = torch.zeros(num_kinds, dtype=values.dtype, device=values.device)
    return sums.index_add(0, branch_kinds[selected], values[selected])


def count_terms(batch: dict[str, torch.Tensor], terms: list[LossTerm], kinds: tuple[str, ...]) -> torch.Tensor:
    """What each term is divided by, of a micro-batch: int64 of shape `(T,)`."""
    return torch.stack([term.count(batch, kinds) for term in terms])


def joint_loss(
    loss_sums: torch.Tensor, counts: torch.Tensor, terms: list[LossTerm], kinds: tuple[str, ...]
) -> torch.Tensor:
    """
    `Σ_terms weight · (Σ_{k in term} loss_sums_k) / counts_term`.

    Args:
        loss_sums (`torch.Tensor` of shape `(K,)`):
            Summed token losses of each kind in **this** micro-batch.
        counts (`torch.Tensor` of shape `(T,)`):
            What each term is divided by, of the **global** batch: every micro-batch of the accumulation window, every
            rank. A term without anything to count is a finite zero.
        terms (`list[LossTerm]`):
            The objective.
        kinds (`tuple[str, ...]`):
            Names of the K kinds.

    Returns:
        `torch.Tensor`: A scalar. Summed over the micro-batches and ranks of a global batch it is the objective.
    """
    # Every kind enters, with a factor of 0 if no term names it: a sum over nothing would lose the graph, and a rank
    # without labels must still take part in the backward pass.
    return (loss_sums * kind_factors(counts, terms, kinds).to(loss_sums.dtype)).sum()


def kind_factors(counts: torch.Tensor, terms: list[LossTerm], kinds: tuple[str, ...]) -> torch.Tensor:
    """What a token loss of each kind is multiplied by in the joint objective: float32 of shape `(K,)`."""
    factors = torch.zeros(len(kinds), device=counts.device)
    for term, count in zip(terms, counts, strict=True):
        factors[[kinds.index(kind) for kind in term.kinds]] += term.weight / count.clamp(min=1)
    return factors
