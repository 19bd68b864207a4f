"""Win rate by a judge."""

from collections.abc import Sequence

from ..figures import Figure
from .client import JudgeClient
from .requests import Judged, JudgeRequest


def win_rate(
    client: JudgeClient,
    items: Sequence[Judged],
    *,
    seed: int = 0,
    both_orders: bool = False,
    task: str = "summarization",
) -> dict[str, Figure]:
    """`{"win_rate": …, "length_adjusted_win_rate": …}`; `task` is `"summarization"`, `"qa"` or a .jinja file."""
    raise NotImplementedError


def win_rate_requests(
    items: Sequence[Judged], *, seed: int = 0, both_orders: bool = False, task: str = "summarization"
) -> list[JudgeRequest]:
    """The questions of [`win_rate`], for a dry run."""
    raise NotImplementedError
