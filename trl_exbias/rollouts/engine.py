"""What a rollout engine is: three verbs, token ids in, token ids out, order kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ..core.token_ids import TokenIds, check_prompts


if TYPE_CHECKING:
    from .stop_strings import StopStrings


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """
    How tokens are drawn from the policy.

    Args:
        temperature (`float`, *optional*, defaults to `1.0`):
            The logits are divided by it; `0.0` takes the most probable token (ties: the lowest id).
        top_p (`float`, *optional*, defaults to `1.0`):
            Keep the smallest set of most probable tokens whose probability reaches `top_p`. `1.0` keeps all.
        top_k (`int`, *optional*, defaults to `0`):
            Keep the `top_k` most probable tokens. `0` keeps all.
        min_p (`float`, *optional*, defaults to `0.0`):
            Keep tokens at least `min_p` times as probable as the most probable one, before `top_k` and `top_p`. `0.0` keeps all.
        repetition_penalty (`float`, *optional*, defaults to `1.0`):
            Logits of tokens that have occurred are divided by it where positive, else multiplied, before the temperature and
            the truncations: transformers' and vLLM's definition. A token has occurred if it is in the prompt or the response so
            far; in `mix` the response so far is the mixed prefix, gold tokens included. `label` does not penalise. `1.0` is off.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            `sample` ends a sequence after this many tokens.
        stop_token_ids (`tuple[int, ...]`, *optional*):
            `sample` ends a sequence after any of these; the stop token is kept. `mix` ignores them.
        stop_strings ([`~trl_exbias.rollouts.StopStrings`], *optional*):
            `sample` ends a sequence after the token that completes one of these strings; that token is kept. `mix` ignores them.
        excluded_token_ids (`tuple[int, ...]`, *optional*):
            These are never drawn, such as padding rows of the embeddings that stand for no token.
        seed (`int`, *optional*, defaults to `0`):
            Together with the example's id and the position in the response, the key of every random draw.

    Raises:
        ValueError: for a value outside its range; the message names the option and the range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 256
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: "StopStrings | None" = None
    excluded_token_ids: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"`temperature` must be 0 (greedy) or more, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` must be in (0, 1], got {self.top_p}.")
        if self.top_k < 0:
            raise ValueError(f"`top_k` must be 0 (off) or more, got {self.top_k}.")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"`min_p` must be in [0, 1], got {self.min_p}.")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"`repetition_penalty` must be above 0; 1 is off, got {self.repetition_penalty}.")
        if self.max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` must be at least 1, got {self.max_new_tokens}.")

    def ended(self, response: TokenIds) -> bool:
        """Whether a sampled response ended by itself, with a stop token or string; one that was cut off did not."""
        if self.stop_strings is not None and self.stop_strings.end([response])[0]:
            return True
        return len(response) > 0 and response[-1] in self.stop_token_ids


@runtime_checkable
class RolloutEngine(Protocol):
    """
    Draws from, and labels with, a policy.

    Every draw is keyed by (seed, example id, position in the response), so that the result depends neither on the
    batch size nor on the order of the rows, the sharding or the number of processes. `example_ids` defaults to
    `0..n-1`.
    """

    def sample(
        self, prompts: Sequence[TokenIds], options: SamplingOptions, example_ids: Sequence[int] | None = None
    ) -> list[list[int]]:
        """The policy's own response to each prompt, up to and including a stop token or string, or `max_new_tokens`."""
        ...

    def mix(
        self,
        prompts: Sequence[TokenIds],
        references: Sequence[TokenIds],
        masks: Sequence[Sequence[bool]],
        options: SamplingOptions,
        example_ids: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """
        The reference with the positions where the mask is true drawn from the policy, left to right, each given the
        mixed prefix before it (BASH Eq. 4). As long as the reference, whatever is drawn.
        """
        ...

    def label(self, contexts: Sequence[TokenIds], continuations: Sequence[TokenIds]) -> list[list[int]]:
        """The most probable token (ties: the lowest id) at every position of each continuation, given what precedes."""
        ...


def check_mix(
    prompts: Sequence[TokenIds],
    references: Sequence[TokenIds],
    masks: Sequence[Sequence[bool]],
    example_ids: Sequence[int] | None,
) -> tuple[list[int], list[list[int]]]:
    """Validates a call of `mix` and returns the example ids and, for each row, the positions that are drawn."""
    ids = check_prompts(prompts, references, masks, example_ids=example_ids)
    for row, (reference, mask) in enumerate(zip(references, masks, strict=True)):
        if len(reference) != len(mask):
            raise ValueError(f"Row {row}: the mask has {len(mask)} entries for a reference of {len(reference)}.")
    return ids, [[j for j, is_drawn in enumerate(mask) if is_drawn] for mask in masks]
