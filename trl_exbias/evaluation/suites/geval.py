"""G-Eval: a judge's scores on criteria, divided by the true continuation's (Pozzi 2025, Table 1)."""

from typing import Any

from ...core.errors import UsageError
from ..figures import Figure
from ..options import EvaluationOptions
from ..work import Work
from .suite import Suite


def _figures(work: Work) -> dict[str, Figure]:
    from ..judging import geval

    return work.over_repetitions(
        lambda responses: geval(
            work.asked_judge, work.judged({key: one.text for key, one in responses.items()}), _criteria(work)
        )
    )


def _check(options: EvaluationOptions) -> None:
    from ..judging.geval_criteria import named_criteria, read_criteria

    if options.criteria is None:
        raise UsageError(f"`geval` needs --criteria: one of {', '.join(named_criteria())}, or a .yaml file of yours.")
    read_criteria(options.criteria)


def _criteria(work: Work) -> str:
    assert work.options.criteria is not None  # `_check` has seen to it
    return work.options.criteria


def _requests(work: Work, texts: dict[str, str]) -> list[Any]:
    from ..judging import geval_requests

    return geval_requests(work.judged(texts), _criteria(work))


SUITE = Suite(name="geval", figures=_figures, requests=_requests, check=_check, packages={"openai": "eval"})
