"""How far the policy p is from soft labels q, otherwise than by the forward KL divergence of `distillation.py`.

With the log-ratio r = log q − log p of each event (a token, or the bucket of all others), and m = βq + (1 − β)p:

    reverse KL         KL(p‖q) = −Σ p r
    Jensen–Shannon     JSD_β(q‖p) = β KL(q‖m) + (1 − β) KL(p‖m) = β Σ q (r − s) − (1 − β) Σ p s,   s = log (m / p)

as in Agarwal 2024 (GKD, Eq. 1), in nats. q is a constant. For a sum Σ p g, whose g has a gradient that vanishes under p, the
gradient of the policy's logits is p (g − Σ p g); here g is −r, or −(1 − β) s.

Shapes: n positions of a chunk, V vocabulary.
"""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from .soft_targets import SoftTarget, TargetChunk, row_dot


FORWARD_KL, REVERSE_KL, JENSEN_SHANNON = "forward_kl", "reverse_kl", "jensen_shannon"
DIVERGENCES = (FORWARD_KL, REVERSE_KL, JENSEN_SHANNON)


@dataclass(frozen=True)
class Divergence:
    """
    Which divergence is minimised.

    Args:
        name (`str`): One of `DIVERGENCES`.
        beta (`float`): β of the Jensen–Shannon divergence, in (0, 1); the others have none.
    """

    name: str = FORWARD_KL
    beta: float = 0.5

    def between(self, target: SoftTarget) -> SoftTarget:
        """Soft labels that pull the policy by this divergence."""
        return target if self.name == FORWARD_KL else DivergentTarget(target, self)


class DivergentTarget:
    """
    Soft labels under another divergence than the forward KL.

    Args:
        target ([`SoftTarget`]): The soft labels.
        divergence ([`Divergence`]): Reverse KL or Jensen–Shannon.
    """

    def __init__(self, target: SoftTarget, divergence: Divergence):
        self.target, self.divergence = target, divergence
        self.vocab_size = target.vocab_size

    def ahead(self, rows: slice) -> AbstractContextManager[None]:
        return self.target.ahead(rows)

    def log_ratios(self, rows: slice, policy_log_probs: torch.Tensor, temperature: float) -> torch.Tensor:
        return self.target.log_ratios(rows, policy_log_probs, temperature)

    def chunk(self, rows: slice, policy_log_probs: torch.Tensor, temperature: float) -> TargetChunk:
        ratios = self.log_ratios(rows, policy_log_probs, temperature)
        labels = (policy_log_probs + ratios).exp_()
        kl = row_dot(labels, ratios)
        policy = policy_log_probs.exp()
        if self.divergence.name == REVERSE_KL:
            loss = own = row_dot(policy, ratios).neg_()
            share = 1.0
        else:
            beta = self.divergence.beta
            share = 1 - beta
            to_labels, ratios = kl, torch.logaddexp(ratios + math.log(beta), ratios.new_tensor(math.log(share)))
            own = row_dot(policy, ratios).neg_()
            loss = beta * (to_labels - row_dot(labels, ratios)) + share * own
        # What the policy is pulled towards: itself less the gradient.
        pull = ratios.add_(own.unsqueeze(-1)).mul_(share).add_(1).mul_(policy)
        return TargetChunk(pull, loss, kl)


def divergence_problems(name: str, beta: float, unused: str | None = None) -> list[str]:
    """
    What is wrong with the settings `divergence` and `jsd_beta`, as one line each.

    Args:
        unused (`str`, *optional*): The setting because of which there are no soft labels, such as `"alpha=1"`.
    """
    found = []
    if name not in DIVERGENCES:
        found.append(f"`divergence` must be one of {', '.join(DIVERGENCES)}, got {name!r}.")
    elif name != FORWARD_KL and unused is not None:
        found.append(f"`divergence={name!r}` is of soft labels, and `{unused}` has none. Leave it out.")
    if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 < beta < 1:
        found.append(
            f"`jsd_beta` must be in (0, 1), got {beta!r}: towards 0 and 1 the divergence vanishes. For KL divergences, set "
            "`divergence`."
        )
    elif beta != Divergence.beta and name in (FORWARD_KL, REVERSE_KL):
        found.append(f"`jsd_beta={beta}` is of `divergence='jensen_shannon'`, not of {name!r}. Leave it out.")
    return found
