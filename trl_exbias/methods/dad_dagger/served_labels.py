"""A server's answer as soft labels: k tokens with their log-probabilities, and the mass of all others as one bucket."""

import math
from collections.abc import Sequence
from typing import Any

import torch


#: What float32 cannot tell from nothing in a sum of 1. Less is never left for the other tokens: log 0 would make the
#: reverse divergence infinite.
_LEAST_TAIL = 2.0**-24
_ROUNDING = 1e-3


class BadAnswer(ValueError):
    """An answer that is not the log-probabilities that were asked for."""


class TooFew(Exception):
    """Among the k tokens of some position, `missing` at most are not the student's."""

    def __init__(self, missing: int):
        super().__init__(missing)
        self.missing = missing


def labels_of(
    answer: Any, tokens: Sequence[int], positions: Sequence[int], asked: int, k: int, vocab_size: int
) -> dict[str, torch.Tensor]:
    """
    What a [`~trl_exbias.core.soft_targets.TopKTarget`] is made of, from a completion with `prompt_logprobs`.

    Tokens of the teacher that the student does not have are left out, and the others' probabilities are those given that
    none of them comes: `log p(v) − log(1 − Σ_left out p)`. The bucket has `1 − Σ_{v in top k} p(v)`.

    Args:
        answer (`Any`): The server's, as JSON.
        tokens (`Sequence[int]`): The prompt that was sent.
        positions (`Sequence[int]`): Places in it; the labels are the distributions that its tokens there were drawn from.
        asked (`int`): Tokens that were asked for in each place.
        k (`int`): Tokens that are kept.
        vocab_size (`int`): Tokens that the student has.

    Returns:
        `dict`: `ids` int32 `(n, k)`, `log_probs` float32 `(n, k)`, `tail_log_prob` float32 `(n,)`.

    Raises:
        BadAnswer: saying what is wrong with it.
        TooFew: where more have to be asked for.
    """
    found = _prompt_log_probs(answer, tokens)
    kept = [_kept(found[place], tokens[place], asked, vocab_size) for place in positions]
    missing = max(k - len(own) for own, _ in kept)
    if missing > 0:
        raise TooFew(missing)
    own = [sorted(own, key=lambda entry: (-entry[1], entry[0]))[:k] for own, _ in kept]
    left_out = torch.tensor([mass for _, mass in kept], dtype=torch.float64)
    log_probs = torch.tensor([[value for _, value in row] for row in own], dtype=torch.float64)
    log_probs -= torch.log1p(-left_out).unsqueeze(-1)
    mass = log_probs.exp().sum(-1)
    # Not `>`: what is not a number is wrong too.
    if not (mass.max() <= 1 + _ROUNDING and log_probs.max() <= _ROUNDING):
        raise BadAnswer(
            f"its {k} log-probabilities have a mass of {float(mass.max()):.4g}, above 1: is it started with "
            "`--logprobs-mode raw_logits`? It has to be `raw_logprobs`, the default"
        )
    tail = (1 - mass).clamp(min=_LEAST_TAIL).log() if k < vocab_size else torch.full_like(mass, -math.inf)
    return {
        "ids": torch.tensor([[token for token, _ in row] for row in own], dtype=torch.int32),
        "log_probs": log_probs.float(),
        "tail_log_prob": tail.float(),
    }


def own_log_probs(answer: Any, tokens: Sequence[int]) -> list[float]:
    """Log-probability of each token of a prompt but the first, given those before it (nats)."""
    found = _prompt_log_probs(answer, tokens)
    return [float(entries[str(token)]["logprob"]) for token, entries in zip(tokens[1:], found[1:], strict=True)]


def _prompt_log_probs(answer: Any, tokens: Sequence[int]) -> list[dict[str, Any]]:
    """For each token of the prompt but the first the entries of its place, by token id; they line up with the prompt."""
    try:
        choice = answer["choices"][0]
        found, echoed = choice.get("prompt_logprobs"), choice.get("prompt_token_ids")
    except (AttributeError, IndexError, KeyError, TypeError):
        raise BadAnswer("it is not a completion") from None
    if found is None:
        raise BadAnswer("it has no `prompt_logprobs`, which `vllm serve` gives")
    if echoed is not None and echoed != list(tokens):
        raise BadAnswer("it read other tokens than it was sent")
    if len(found) != len(tokens):
        raise BadAnswer(f"it has log-probabilities of {len(found)} tokens for a prompt of {len(tokens)}")
    for token, entries in zip(tokens[1:], found[1:], strict=True):
        if not isinstance(entries, dict) or not all(map(_is_log_prob, entries.values())):
            raise BadAnswer(f"in the place of token {token} it has no log-probabilities")
        if str(token) not in entries:
            raise BadAnswer(
                f"its log-probabilities do not line up with the prompt: token {token} is not in its own place"
            )
    return found


def _is_log_prob(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("logprob"), int | float)


def _kept(entries: dict[str, Any], token: int, asked: int, vocab_size: int) -> tuple[list[tuple[int, float]], float]:
    """The student's tokens with their log-probabilities, and the mass of the others."""
    values = [(int(name), float(entry["logprob"])) for name, entry in entries.items()]
    if len(values) > asked:
        # The prompt's own token is told too where it is not among the most probable: others before it are not known.
        values = [entry for entry in values if entry[0] != token]
    left_out = sum(math.exp(min(value, 1.0)) for name, value in values if name >= vocab_size)
    if left_out >= 1:
        raise BadAnswer(
            f"the teacher gives all mass to tokens that the student does not have, in the place of token {token}"
        )
    return [entry for entry in values if entry[0] < vocab_size], left_out
