"""ROUGE-1/2/L F1 of the responses against the references."""

from ..figures import Figure
from ..work import Work
from .suite import Suite


def _figures(work: Work) -> dict[str, Figure]:
    from ..rouge import rouge

    return work.over_repetitions(
        lambda responses: rouge({key: one.text for key, one in responses.items()}, work.references)
    )


SUITE = Suite(name="rouge", figures=_figures, packages={"rouge_score": "eval"})
