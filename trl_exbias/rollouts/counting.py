"""Counts what an engine draws and labels, and what is wrong with it: nothing said, broken off, never ended, one token over and over."""

from collections.abc import Callable, Sequence

from ..core.token_ids import TokenIds
from .engine import RolloutEngine, SamplingOptions


# A response this long of a single token does not happen by accident.
_REPEATED_TOKENS = 8

EMPTY, TRUNCATED, REPEATED = "rollout/empty_rate", "rollout/truncation_rate", "rollout/repeated_rate"
UNFINISHED, DEGENERATE = "rollout/unfinished_rate", "rollout/degenerate_rate"
#: Tokens of a response, drawn or led through; tokens read to label one, its context's included.
LENGTH, LABEL_LENGTH = "rollout/length", "rollout/label_length"


class CountingEngine:
    """
    A [`RolloutEngine`] that hands its calls on to another one, and counts tokens and degenerate samples.

    Args:
        engine ([`RolloutEngine`]): Does the work.
        count (`Callable[[str, float, float], None]`): Is told a metric's numerator and denominator after each call.
        is_unfinished (`Callable[[Sequence[int]], bool]`, *optional*):
            Whether a response that has ended broke off; see [`~trl_exbias.chat.stop_tokens.unfinished_test`].

    Shares of the sequences that were free to end: `rollout/empty_rate` have no token besides the stop token or string,
    `rollout/unfinished_rate` ended at a marker in the middle of a turn, `rollout/truncation_rate` met `max_new_tokens`,
    `rollout/repeated_rate` are one token, eight times or more; `rollout/degenerate_rate` any of them.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        count: Callable[[str, float, float], None],
        is_unfinished: Callable[[TokenIds], bool] = lambda response: False,
    ):
        self.engine, self.count, self.is_unfinished = engine, count, is_unfinished

    def sample(
        self, prompts: Sequence[TokenIds], options: SamplingOptions, example_ids: Sequence[int] | None = None
    ) -> list[list[int]]:
        drawn = self.engine.sample(prompts, options, example_ids)
        stops, strings = set(options.stop_token_ids), options.stop_strings
        rates = {EMPTY: 0, UNFINISHED: 0, TRUNCATED: 0, REPEATED: 0, DEGENERATE: 0}
        for tokens in drawn:
            stopped = bool(tokens) and tokens[-1] in stops
            said = tokens[:-1] if stopped else tokens if strings is None else strings.said(tokens)
            empty = not said
            unfinished = not empty and stopped and self.is_unfinished(tokens)
            # Without stop tokens and strings the length is the caller's: a horizon, not a response.
            truncated = (bool(stops) or strings is not None) and not empty and said is tokens
            repeated = len(said) >= _REPEATED_TOKENS and len(set(said)) == 1
            found = {EMPTY: empty, UNFINISHED: unfinished, TRUNCATED: truncated, REPEATED: repeated}
            for name, wrong in {**found, DEGENERATE: any(found.values())}.items():
                rates[name] += wrong
        for name, number in rates.items():
            self.count(name, number, len(drawn))
        return self._counted(drawn)

    def mix(
        self,
        prompts: Sequence[TokenIds],
        references: Sequence[TokenIds],
        masks: Sequence[Sequence[bool]],
        options: SamplingOptions,
        example_ids: Sequence[int] | None = None,
    ) -> list[list[int]]:
        return self._counted(self.engine.mix(prompts, references, masks, options, example_ids))

    def label(self, contexts: Sequence[TokenIds], continuations: Sequence[TokenIds]) -> list[list[int]]:
        self.count(LABEL_LENGTH, sum(map(len, contexts)) + sum(map(len, continuations)), len(contexts))
        return self.engine.label(contexts, continuations)

    def _counted(self, drawn: list[list[int]]) -> list[list[int]]:
        self.count(LENGTH, sum(map(len, drawn)), len(drawn))
        return drawn
