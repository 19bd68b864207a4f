"""A teacher's distribution at the scored positions, a few of them at a time: whole, or its k most probable tokens.

Shapes: N scored positions, n of them at a time, V vocabulary, K top-k.
"""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from .modeling import LMHead


class SoftTarget(Protocol):
    """The teacher's distribution at N positions, produced chunk by chunk."""

    vocab_size: int

    def chunk(self, rows: slice, policy_log_probs: torch.Tensor, temperature: float) -> "TargetChunk":
        """The distribution at some positions, against the policy's log-probabilities `(n, vocab_size)` there."""
        ...

    def log_ratios(self, rows: slice, policy_log_probs: torch.Tensor, temperature: float) -> torch.Tensor:
        """`log p* − log p_θ` of each token there, `(n, vocab_size)`, in a tensor that is the caller's."""
        ...

    def ahead(self, rows: slice) -> AbstractContextManager[None]:
        """Within the block, positions among these are asked for a few at a time."""
        ...


@dataclass(frozen=True)
class TargetChunk:
    """
    Args:
        probabilities (`torch.Tensor` of shape `(n, V)`): What the policy is pulled towards: `p_θ − ∂loss/∂logits`.
        loss (`torch.Tensor` of shape `(n,)`): Nats: the cross-entropy `−Σ p* log p_θ`, or another divergence.
        kl (`torch.Tensor` of shape `(n,)`): The divergence `KL(p*‖p_θ)`, nats, whatever the loss is.
    """

    probabilities: torch.Tensor
    loss: torch.Tensor
    kl: torch.Tensor


class DenseTarget:
    """
    The teacher's whole distribution, as its last hidden states and its LM head.

    Args:
        hidden (`torch.Tensor` of shape `(N, H_teacher)`): Last hidden states at the scored positions.
        head ([`LMHead`]): The teacher's.
        vocab_size (`int`): Tokens that teacher and policy share; logits of padding rows beyond are cut off.
    """

    def __init__(self, hidden: torch.Tensor, head: LMHead, vocab_size: int):
        self.hidden = hidden
        self.head = head
        self.vocab_size = vocab_size
        self._ahead: tuple[int, torch.Tensor] | None = None

    @contextlib.contextmanager
    def ahead(self, rows: slice) -> Iterator[None]:
        # Not finished: scaling and soft-capping a whole chunk would take several times its memory.
        self._ahead = rows.start, self.head.raw(self.hidden[rows])
        try:
            yield
        finally:
            self._ahead = None

    def chunk(self, rows: slice, policy_log_probs: torch.Tensor, temperature: float) -> TargetChunk:
        logits = self._logits(rows, policy_log_probs.device, temperature)
        normaliser = logits.logsumexp(-1)
        probabilities = torch.exp(logits - normaliser.unsqueeze(-1))
        entropy = normaliser - row_dot(probabilities, logits)
        cross_entropy = -row_dot(probabilities, policy_log_probs)
        return TargetChunk(probabilities, cross_entropy, cross_entropy - entropy)

    def log_ratios(self, rows: slice, policy_log_probs: torch.Tensor, temperature: float) -> torch.Tensor:
        logits = self._logits(rows, policy_log_probs.device, temperature)
        normaliser = logits.logsumexp(-1, keepdim=True)
        return (logits - normaliser).sub_(policy_log_probs)

    def logits(self, rows: slice) -> torch.Tensor:
        """The teacher's logits at some positions, `(n, vocab_size)`, where its head is."""
        return self.head(self.hidden[rows])[:, : self.vocab_size]

    def _logits(self, rows: slice, device: torch.device, temperature: float) -> torch.Tensor:
        assert self._ahead is not None, "outside of `ahead`"
        start, raw = self._ahead
        logits = self.head.finish(raw[rows.start - start : rows.stop - start])[:, : self.vocab_size].to(device)
        return logits if temperature == 1.0 else logits / temperature


class TopKTarget:
    """
    The teacher's k most probable tokens, and the mass of all others as one bucket.

    `CE = −Σ_{v in top k} p*(v) log p_θ(v) − p*(rest) log p_θ(rest)`, where `p_θ(rest)` is the policy's mass on all other
    tokens. With k = V there is no rest, and this is the dense cross-entropy.

    Args:
        ids (`torch.Tensor` of shape `(N, K)`): Token ids.
        log_probs (`torch.Tensor` of shape `(N, K)`): Their log-probabilities (at the distillation temperature).
        tail_log_prob (`torch.Tensor` of shape `(N,)`): Log-mass of the rest; `-inf` for none.
        vocab_size (`int`): As in [`DenseTarget`].
    """

    def __init__(self, ids: torch.Tensor, log_probs: torch.Tensor, tail_log_prob: torch.Tensor, vocab_size: int):
        self.ids = ids.long()
        self.log_probs = log_probs.float()
        self.tail_log_prob = tail_log_prob.float()
        self.vocab_size = vocab_size

    def ahead(self, rows: slice) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def chunk(self, rows: slice, policy_log_probs: torch.Tensor, temperature: float) -> TargetChunk:
        ids, log_probs, tail_log_prob = self.ids[rows], self.log_probs[rows], self.tail_log_prob[rows]
        top, tail = log_probs.exp(), tail_log_prob.exp()
        rest = policy_log_probs.scatter(-1, ids, float("-inf"))
        # Not 1 − Σ p_θ(top k): where the top k have nearly all the mass, that difference has no digits left.
        policy_tail = rest.logsumexp(-1)
        has_tail = (tail > 0) & policy_tail.isfinite()
        policy_tail = policy_tail.masked_fill(~has_tail, 0.0)
        tail = tail * has_tail
        # Within the bucket there is no preference: its mass is spread as the policy spreads its own.
        probabilities = rest.sub_(policy_tail.unsqueeze(-1)).exp_().mul_(tail.unsqueeze(-1)).scatter_(-1, ids, top)
        cross_entropy = -row_dot(top, policy_log_probs.gather(-1, ids)) - tail * policy_tail
        entropy = -row_dot(top, log_probs.masked_fill(top == 0, 0.0)) - tail * tail_log_prob.masked_fill(~has_tail, 0.0)
        return TargetChunk(probabilities, cross_entropy, cross_entropy - entropy)

    def log_ratios(self, rows: slice, policy_log_probs: torch.Tensor, temperature: float) -> torch.Tensor:
        # A token of the bucket has the bucket's ratio: within it the labels have no preference.
        ids = self.ids[rows]
        rest = policy_log_probs.scatter(-1, ids, float("-inf")).logsumexp(-1, keepdim=True)
        ratios = (self.tail_log_prob[rows].unsqueeze(-1) - rest).expand(-1, self.vocab_size).contiguous()
        return ratios.scatter_(-1, ids, self.log_probs[rows] - policy_log_probs.gather(-1, ids))


def top_k_of(
    head: LMHead, hidden: torch.Tensor, k: int, vocab_size: int, temperature: float
) -> dict[str, torch.Tensor]:
    """
    What a [`TopKTarget`] is made of, from the teacher's hidden states `(n, H)` of one chunk.

    Returns:
        `dict`: `ids` int32 `(n, k)`, `log_probs` float32 `(n, k)`, `tail_log_prob` float32 `(n,)`.
    """
    log_probs = (head(hidden)[:, :vocab_size] / temperature).log_softmax(-1)
    top = log_probs.topk(k)
    tail = log_probs.scatter(-1, top.indices, float("-inf")).logsumexp(-1)
    return {"ids": top.indices.int(), "log_probs": top.values, "tail_log_prob": tail}


def row_dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Row-wise inner products, without a tensor of the products."""
    return torch.linalg.vecdot(a, b)
