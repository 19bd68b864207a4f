"""Perplexity with a sliding context: how well a model predicts the next token from exactly H true ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import UsageError
from .bootstrap import bootstrap_interval


if TYPE_CHECKING:
    from torch import nn

    from ..core.token_ids import TokenIds


@dataclass(frozen=True)
class Perplexity:
    """
    One-step cross-entropy over `num_tokens` tokens (Pozzi 2025, Eq. 10–11).

    Args:
        nats (`float`): Mean cross-entropy, nats per token; `interval` is its 95 % bootstrap interval over tokens.
        num_tokens (`int`): Tokens scored.
    """

    nats: float
    interval: tuple[float, float]
    num_tokens: int

    @property
    def bits(self) -> float:
        """Bits per token."""
        return self.nats / math.log(2)

    @property
    def perplexity(self) -> float:
        """`e^nats = 2^bits`."""
        return math.exp(self.nats)

    def bits_per_byte(self, num_bytes: int) -> float:
        """Bits per byte of the scored tokens' text, which does not depend on the tokenizer."""
        return self.bits * self.num_tokens / num_bytes


def perplexity(
    model: "nn.Module",
    token_ids: "Sequence[TokenIds]",
    context_length: int,
    stride: int = 1,
    max_batch_tokens: int = 16384,
) -> Perplexity:
    """
    Scores tokens after exactly `context_length` true ones, never across documents.

    The window slides exactly, so every token costs a context of its own: `stride > 1` scores every stride-th token.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Left as it was found.
        token_ids (`Sequence[Sequence[int]]`): Token ids of each document.
        context_length (`int`): H.

    Raises:
        ValueError: if no document is longer than `context_length`.
    """
    nll = sliding_nll(model, token_ids, context_length, stride, max_batch_tokens)
    low, high = bootstrap_interval(nll)
    return Perplexity(float(nll.mean()), (float(low), float(high)), len(nll))


def sliding_nll(
    model: "nn.Module",
    token_ids: "Sequence[TokenIds]",
    context_length: int,
    stride: int = 1,
    max_batch_tokens: int = 16384,
) -> np.ndarray:
    """The negative log-likelihoods, in nats, whose mean [`perplexity`] reports, in the order of the tokens."""
    from ..core.likelihood import label_nll
    from ..methods.dad_dagger.trajectories import starts

    contexts, targets = [], []
    for document in token_ids:
        for start in starts(len(document), context_length + 1, stride):
            contexts.append(document[start : start + context_length])
            targets.append([document[start + context_length]])
    if not contexts:
        raise UsageError(
            f"No document is longer than the context of {context_length} tokens; the longest has "
            f"{max(map(len, token_ids), default=0)}."
        )
    return np.array([row[0] for row in label_nll(model, contexts, targets, targets, 0, max_batch_tokens)])
