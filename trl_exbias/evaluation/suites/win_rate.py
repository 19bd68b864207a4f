"""How often a judge prefers the response to the reference (Cen 2024, App. A.1)."""

from typing import Any

from ..figures import Figure
from ..options import EvaluationOptions
from ..work import Work
from .suite import Suite


def _settings(work: Work) -> dict[str, Any]:
    options = work.options
    return {"seed": options.seed, "both_orders": options.both_orders, "task": options.task or "summarization"}


def _check(options: EvaluationOptions) -> None:
    from ..judging import win_rate_requests

    # Reads the template.
    win_rate_requests([], task=options.task or "summarization")


def _figures(work: Work) -> dict[str, Figure]:
    from ..judging import win_rate

    return work.over_repetitions(
        lambda responses: win_rate(
            work.asked_judge, work.judged({key: one.text for key, one in responses.items()}), **_settings(work)
        )
    )


def _requests(work: Work, texts: dict[str, str]) -> list[Any]:
    from ..judging import win_rate_requests

    return win_rate_requests(work.judged(texts), **_settings(work))


SUITE = Suite(name="win_rate", figures=_figures, requests=_requests, check=_check, packages={"openai": "eval"})
