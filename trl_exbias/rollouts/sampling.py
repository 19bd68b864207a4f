"""Choosing tokens: repetition penalty, temperature, min-p, top-k, top-p, and the Gumbel-max draw with keyed noise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..core.modeling import LMHead
from ..core.reading import logit_chunks, pad_right
from .engine import SamplingOptions
from .noise import add_gumbel_


@dataclass(frozen=True)
class Prefixes:
    """
    What stands before each token that is drawn: the beginning of a sequence, so that many draws can share one.

    Args:
        sequences (`Mapping[int, Sequence[int]]`): Prompts with responses, by row.
        rows (`list[int]`): The row of each draw.
        lengths (`list[int]`): How many of its tokens come before the draw.
    """

    sequences: Mapping[int, Sequence[int]]
    rows: list[int]
    lengths: list[int]

    def occurred(self, draws: slice, vocab_size: int, device: torch.device) -> torch.Tensor:
        """Whether each token stands before each of some draws: `(draws, V)`."""
        rows, lengths = self.rows[draws], torch.tensor(self.lengths[draws], device=device)
        places = {row: place for place, row in enumerate(dict.fromkeys(rows))}
        tokens = pad_right([self.sequences[row] for row in places], 0).to(device)
        first = torch.full((len(places), vocab_size), tokens.size(1), dtype=torch.int32, device=device)
        # Padding comes after every prefix, and so after the first place of any token in one.
        positions = torch.arange(tokens.size(1), dtype=torch.int32, device=device).expand_as(tokens)
        first.scatter_reduce_(1, tokens, positions, "amin")
        return first[[places[row] for row in rows]] < lengths.unsqueeze(1)


def draws_after(
    asked: list[tuple[int, int]], guess: Mapping[int, list[int]], prompts: Sequence[Sequence[int]], ids: Sequence[int]
) -> tuple[list[int], list[int], Prefixes]:
    """Keys and prefixes of the draws after some (row, query) places of a guess: example ids, positions in the response, prefixes."""
    rows = [row for row, _ in asked]
    positions = [query + 1 - len(prompts[row]) for row, query in asked]
    # A penalty looks at the guess, as the hidden states do: a draw after settled tokens is settled.
    return [ids[row] for row in rows], positions, Prefixes(guess, rows, [query + 1 for _, query in asked])


def choose_tokens(
    head: LMHead,
    hidden: torch.Tensor,
    options: SamplingOptions,
    example_ids: list[int],
    positions: list[int],
    prefixes: Prefixes | None = None,
) -> list[int]:
    """
    One token for each row of `hidden`, drawn as `options` say with the noise of `(seed, example id, position)`.

    Args:
        head ([`LMHead`]): Turns hidden states into logits.
        hidden (`torch.Tensor` of shape `(rows, hidden_size)`): Last hidden states.
        example_ids (`list[int]`), positions (`list[int]`): The key of each row's draw.
        prefixes ([`Prefixes`], *optional*): What a repetition penalty looks at; needed with one.

    Returns:
        `list[int]`: The tokens.
    """
    chosen = []
    for rows in logit_chunks(hidden, head.vocab_size):
        scores = head(hidden[rows])
        if options.repetition_penalty != 1:
            assert prefixes is not None, "a repetition penalty looks at what came before"
            penalise_(scores, prefixes.occurred(rows, scores.size(-1), scores.device), options.repetition_penalty)
        filter_logits_(scores, options)
        if options.temperature > 0:
            add_gumbel_(scores, options.seed, example_ids[rows], positions[rows])
        chosen.append(scores.argmax(-1))
    return torch.cat(chosen).tolist() if chosen else []


def penalise_(logits: torch.Tensor, occurred: torch.Tensor, penalty: float) -> None:
    """Divides the positive logits of tokens that have `occurred` by `penalty`, and multiplies the others', in place."""
    one, factor = logits.new_ones(()), logits.new_tensor(penalty)
    # What is divided stays positive: it is not multiplied after.
    logits /= torch.where(occurred & (logits > 0), factor, one)
    logits *= torch.where(occurred & (logits < 0), factor, one)


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
