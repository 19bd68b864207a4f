"""Gated gold: how far a gold label is trusted at a state that the policy has come to by itself.

After a token of the policy's own, gold may no longer be right. A reader q that knows more (the policy that is shown the
reference, or a teacher) says how likely the gold token y_j still is, and the label's loss is multiplied by

    threshold    w_j = min(1, q_j(y_j) / ε)
    relative     w_j = q_j(y_j) / max_v q_j(v)

w is a constant: no gradient goes through it.
"""

from dataclasses import dataclass

import torch

from .reading import logit_chunks
from .soft_targets import DenseTarget, SoftTarget


GATES = ("threshold", "relative")


@dataclass(frozen=True)
class Gate:
    """
    Args:
        kind (`str`): One of `GATES`.
        epsilon (`float`): ε, the probability from which on gold is trusted whole; for `"threshold"`.
    """

    kind: str
    epsilon: float

    def weights(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The weight of each label, from the reader's logits `(n, V)`."""
        of_label = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        if self.kind == "relative":
            return (of_label - logits.amax(-1)).exp()
        return ((of_label - logits.logsumexp(-1)).exp() / self.epsilon).clamp(max=1)


@torch.no_grad()
def teacher_trust(
    gate: Gate | None, target: SoftTarget, labels: torch.Tensor, visited: torch.Tensor
) -> tuple[torch.Tensor | float, dict[str, torch.Tensor]]:
    """
    How far each of N gold labels is trusted by a teacher: its weight where the policy has come to a state itself, else 1.

    Args:
        visited (`torch.Tensor` of shape `(N,)`): Where the policy has.

    Returns:
        The weights, and by metric name the sum and number of what they are, or would be, at gold and at visited states; 1 and
        nothing without a gate.
    """
    if gate is None:
        return 1.0, {}
    assert isinstance(target, DenseTarget), "the settings leave no other"
    parts = [
        gate.weights(target.logits(rows), labels[rows].to(target.hidden.device))
        for rows in logit_chunks(target.hidden, target.head.vocab_size)
    ]
    trust = torch.cat(parts).to(labels.device) if parts else torch.zeros(0, device=labels.device)
    told = {
        f"gate/{name}": torch.stack([(trust * where).sum(), where.sum()])
        for name, where in (("gold", ~visited), ("visited", visited))
    }
    return torch.where(visited, trust, 1.0), told


def gate_problems(gate: str | None, epsilon: float) -> list[str]:
    """What is wrong with the settings `gate` and `gate_epsilon`, as one line each."""
    found = []
    if gate is not None and gate not in GATES:
        found.append(f"`gate` must be one of {', '.join(GATES)}, or None, got {gate!r}.")
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 < epsilon <= 1:
        found.append(f"`gate_epsilon` must be in (0, 1], got {epsilon!r}.")
    return found
