"""Tokens of half precision against float32: a token may differ only where rounding leaves the choice open, and that is shown."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from trl_exbias.rollouts import SamplingOptions

from ..reference.rollouts import noisy_scores


@dataclass(frozen=True)
class Judge:
    """
    Knows two ways to the same scores: in float32, and as they are rounded.

    Args:
        exact (`torch.nn.Module`): The policy in float32, with the very weights of the rounded one.
        rounded (`Callable`): Logits `(1, L, V)` of token ids `(1, L)`, in half precision, one row at a time.
    """

    exact: torch.nn.Module
    rounded: Callable[[torch.Tensor], torch.Tensor]

    @torch.no_grad()
    def rounding(self, tokens: list[int]) -> torch.Tensor:
        """How far the logits after each token of a sequence are off at most, over the vocabulary: shape `(L,)`."""
        ids = torch.tensor([tokens], device=self.exact.device)
        return (self.rounded(ids)[0].float() - self.exact(ids).logits[0].float()).abs().amax(-1)

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
        return gap <= room, f"tokens {one} and {other} are {gap:.2e} apart in float32, rounding explains {room:.2e}"


def assert_equal_but_for_ties(
    judge: Judge,
    found: list[list[int]],
    expected: list[list[int]],
    prompts: list[list[int]],
    options: SamplingOptions,
) -> int:
    """Rows are equal up to a first difference that rounding explains (later tokens follow from another prefix); counts them."""
    ties = 0
    for i, (prompt, ours, theirs) in enumerate(zip(prompts, found, expected, strict=True)):
        if ours == theirs:
            continue
        place = next((j for j, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
        assert place is not None, f"row {i} has {len(ours)} tokens, the reference's {len(theirs)}"
        is_tie, reason = judge.explains(prompt + ours[:place], ours[place], theirs[place], options, i, place)
        assert is_tie, f"row {i}, position {place}: {reason}"
        ties += 1
    return ties


@torch.no_grad()
def assert_every_token_was_drawn(
    judge: Judge | torch.nn.Module,
    prompts: list[list[int]],
    found: list[list[int]],
    drawn: list[list[bool]] | None,
    options: SamplingOptions,
) -> int:
    """
    Each drawn token has the best noisy score given what stands before it, as one float32 pass over the result has them: that
    is what the sequential algorithm gives. With a judge, the best but for what rounding explains. Counts those.

    Args:
        judge ([`Judge`] or `torch.nn.Module`): A model: there is no rounding to explain anything.
        drawn (`list[list[bool]]`, *optional*): Which positions were drawn; all by default.
    """
    from trl_exbias.rollouts.noise import add_gumbel_

    model = judge.exact if isinstance(judge, Judge) else judge
    ties = 0
    for i, (prompt, tokens) in enumerate(zip(prompts, found, strict=True)):
        places = [j for j in range(len(tokens)) if drawn is None or drawn[i][j]]
        if not places:
            continue
        whole, queries = prompt + tokens, [len(prompt) + j - 1 for j in places]
        scores = model(torch.tensor([whole], device=model.device)).logits[0, queries].float()
        if options.temperature > 0:
            scores = add_gumbel_(scores / options.temperature, options.seed, [i] * len(places), places)
        chosen = torch.tensor([[tokens[j]] for j in places], device=scores.device)
        short = scores.amax(-1) - scores.gather(-1, chosen)[:, 0]
        room = torch.zeros_like(short)
        if isinstance(judge, Judge):
            room = 2 * judge.rounding(whole)[queries] / (options.temperature or 1.0)
        worst = int((short - room).argmax())
        assert short[worst] <= room[worst], (
            f"row {i}, position {places[worst]}: token {tokens[places[worst]]} is {short[worst].item():.2e} below the best "
            f"in float32, rounding explains {room[worst].item():.2e}"
        )
        ties += int((short > 0).sum())
    return ties
