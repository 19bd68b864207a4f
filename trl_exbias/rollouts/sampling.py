"""Choosing tokens: temperature, top-k, top-p, and the Gumbel-max draw with keyed noise."""

import math

import torch

from ..core.modeling import LMHead
from ..core.reading import logit_chunks
from .engine import SamplingOptions
from .noise import add_gumbel_


def choose_tokens(
    head: LMHead, hidden: torch.Tensor, options: SamplingOptions, example_ids: list[int], positions: list[int]
) -> list[int]:
    """
    One token for each row of `hidden`, drawn as `options` say with the noise of `(seed, example id, position)`.

    Args:
        head ([`LMHead`]): Turns hidden states into logits.
        hidden (`torch.Tensor` of shape `(rows, hidden_size)`): Last hidden states.
        example_ids (`list[int]`), positions (`list[int]`): The key of each row's draw.

    Returns:
        `list[int]`: The tokens.
    """
    chosen = []
    for rows in logit_chunks(hidden, head.vocab_size):
        scores = filter_logits_(head(hidden[rows]), options)
        if options.temperature > 0:
            add_gumbel_(scores, options.seed, example_ids[rows], positions[rows])
        chosen.append(scores.argmax(-1))
    return torch.cat(chosen).tolist() if chosen else []


def filter_logits_(logits: torch.Tensor, options: SamplingOptions) -> torch.Tensor:
    """Applies exclusions, temperature, min-p, top-k and top-p, in vLLM's order, to float32 `logits` `(rows, V)`, in place where possible."""
    if options.excluded_token_ids:
        excluded = torch.tensor(options.excluded_token_ids, device=logits.device)
        logits.index_fill_(-1, excluded, float("-inf"))
    if options.temperature > 0:
        logits /= options.temperature
    if options.min_p > 0:
        floor = logits.amax(-1, keepdim=True) + math.log(options.min_p)
        logits.masked_fill_(logits < floor, float("-inf"))
    if 0 < options.top_k < logits.size(-1):
        kth = logits.topk(options.top_k).values[:, -1:]
        logits.masked_fill_(logits < kth, float("-inf"))
    if options.top_p < 1:
        ordered, order = logits.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        # A token stays while the mass before it is below top_p: the one that crosses the line is kept.
        outside = probabilities.cumsum(-1) - probabilities >= options.top_p
        logits.masked_fill_(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))
    return logits
