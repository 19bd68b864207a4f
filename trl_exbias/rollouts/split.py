"""An engine made of two: one that draws, one that labels."""

from collections.abc import Sequence

from ..core.token_ids import TokenIds
from .engine import RolloutEngine, SamplingOptions


class SplitEngine:
    """
    A [`RolloutEngine`] that draws with one engine and labels with another.

    One teacher-forced pass of the training model labels as fast as any server, with the loss's own numerics: what draws
    may be elsewhere.

    Args:
        draws, labels ([`RolloutEngine`]): Two engines of the same policy.
    """

    def __init__(self, draws: RolloutEngine, labels: RolloutEngine):
        self.draws, self.labels = draws, labels

    def sample(
        self, prompts: Sequence[TokenIds], options: SamplingOptions, example_ids: Sequence[int] | None = None
    ) -> list[list[int]]:
        return self.draws.sample(prompts, options, example_ids)

    def mix(
        self,
        prompts: Sequence[TokenIds],
        references: Sequence[TokenIds],
        masks: Sequence[Sequence[bool]],
        options: SamplingOptions,
        example_ids: Sequence[int] | None = None,
    ) -> list[list[int]]:
        return self.draws.mix(prompts, references, masks, options, example_ids)

    def label(self, contexts: Sequence[TokenIds], continuations: Sequence[TokenIds]) -> list[list[int]]:
        return self.labels.label(contexts, continuations)
