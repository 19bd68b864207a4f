"""Tokens against a more precise policy: one may differ only where rounding leaves the choice open, and that is shown."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from trl_exbias.core.modeling import inference
from trl_exbias.rollouts import SamplingOptions
from trl_exbias.rollouts.local.cache_probe import Rows, rows_of
from trl_exbias.rollouts.noise import add_gumbel_

from ..reference.rollouts import noisy_scores


def is_ragged(policy: torch.nn.Module, length: int) -> bool:
    """Whether the engine sweeps, and batches rows of any length: else it decodes, slowly and right, and no token would tell."""
    with inference(policy):
        return rows_of(policy, length) is Rows.RAGGED


#: In any test here, at most this many of the draws between a policy's two best tokens are closer than rounding.
MOST_TIES = 0.1


@dataclass(frozen=True)
class Judge:
    """
    Knows two ways to the same scores: with more digits, and as the policy rounds them.

    Args:
        exact (`torch.nn.Module`): The policy's very weights, computing in a more precise type.
        rounded (`Callable`): The policy's logits `(1, L, V)` of token ids `(1, L)`, one row at a time.
    """

    exact: torch.nn.Module
    rounded: Callable[[torch.Tensor], torch.Tensor]

    @torch.no_grad()
    def rounding(self, tokens: list[int]) -> torch.Tensor:
        """How far the logits after each token of a sequence are off at most, over the vocabulary: shape `(L,)`."""
        ids = torch.tensor([tokens], device=self.exact.device)
        return (self.rounded(ids)[0].double() - self.exact(ids).logits[0].double()).abs().amax(-1)

    def explains(
        self, prefix: list[int], one: int, other: int, options: SamplingOptions, example_id: int, position: int
    ) -> tuple[bool, str]:
        """
        Whether two ways of computing that are rounded as much as the judge's own may choose `one` and `other` after `prefix`.

        Each choice's score is then at most the rounding below the true maximum, and so at most twice it below the other's.
        """
        scores = noisy_scores(self.exact, prefix, options, example_id, position)
        gap = (scores[one] - scores[other]).abs().item()
        room = 2 * self.rounding(prefix)[-1].item() / (options.temperature or 1.0)
        return gap <= room, f"tokens {one} and {other} are {gap:.2e} apart, rounding explains {room:.2e}"


def assert_equal_but_for_ties(
    judge: Judge,
    found: list[list[int]],
    expected: list[list[int]],
    prompts: list[list[int]],
    options: SamplingOptions,
    continuations: list[list[int]] | None = None,
) -> int:
    """
    Rows are equal up to a first difference that rounding explains (later tokens follow from another prefix); counts these.

    Args:
        continuations (`list[list[int]]`, *optional*):
            What labels were asked along: each label is then given by its prefix alone, and each difference is looked at.
    """
    ties = 0
    for i, (prompt, ours, theirs) in enumerate(zip(prompts, found, expected, strict=True)):
        places = [j for j, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]
        assert places or ours == theirs, f"row {i} has {len(ours)} tokens, the reference's {len(theirs)}"
        for place in places[:1] if continuations is None else places:
            prefix = prompt + (ours if continuations is None else continuations[i])[:place]
            is_tie, reason = judge.explains(prefix, ours[place], theirs[place], options, i, place)
            assert is_tie, f"row {i}, position {place}: {reason}"
            ties += 1
    return ties


@torch.no_grad()
def assert_every_token_was_drawn(
    judge: Judge,
    prompts: list[list[int]],
    found: list[list[int]],
    drawn: list[list[bool]] | None,
    options: SamplingOptions,
) -> int:
    """
    Each drawn token has the best noisy score given what stands before it, except for what rounding explains: that is what the
    sequential algorithm gives, token by token. One pass over each result tells. Counts the tokens that are not the best.

    Args:
        drawn (`list[list[bool]]`, *optional*): Which positions were drawn; all by default.
    """
    ties = total = 0
    for i, (prompt, tokens) in enumerate(zip(prompts, found, strict=True)):
        places = [j for j in range(len(tokens)) if drawn is None or drawn[i][j]]
        if not places:
            continue
        whole, queries = prompt + tokens, [len(prompt) + j - 1 for j in places]
        scores = judge.exact(torch.tensor([whole], device=judge.exact.device)).logits[0, queries]
        if options.temperature > 0:
            scores = add_gumbel_(scores / options.temperature, options.seed, [i] * len(places), places)
        chosen = torch.tensor([[tokens[j]] for j in places], device=scores.device)
        short = (scores.amax(-1) - scores.gather(-1, chosen)[:, 0]).double()
        room = 2 * judge.rounding(whole)[queries] / (options.temperature or 1.0)
        worst = int((short - room).argmax())
        assert short[worst] <= room[worst], (
            f"row {i}, position {places[worst]}: token {tokens[places[worst]]} is {short[worst].item():.2e} below the best, "
            f"rounding explains {room[worst].item():.2e}"
        )
        ties, total = ties + int((short > 0).sum()), total + len(places)
    assert ties <= MOST_TIES * total, f"{ties} of {total} tokens are not the best: more than chance brings so close"
    return ties
