"""Repetition, distinct n-grams, length against the reference, truncation: what goes wrong with a text as a text."""

from ..figures import Figure
from ..generations import Generation
from ..work import Work
from .suite import Suite


def _figures(work: Work) -> dict[str, Figure]:
    from ..degeneration import degeneration

    tokenizer = work.subject.tokenizer
    references = {
        key: tokenizer(texts[0], add_special_tokens=False)["input_ids"] for key, texts in work.references.items()
    }

    def measure(responses: dict[str, Generation]) -> dict[str, Figure]:
        tokens = {key: one.tokens for key, one in responses.items()}
        truncated = {key: one.truncated for key, one in responses.items()}
        return degeneration(tokens, references, truncated, settings={"tokenizer": work.subject.vocabulary})

    return work.over_repetitions(measure)


SUITE = Suite(name="degeneration", figures=_figures)
