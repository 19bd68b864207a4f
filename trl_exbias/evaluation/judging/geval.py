"""G-Eval."""

from collections.abc import Sequence
from pathlib import Path

from ..figures import Figure
from .client import JudgeClient
from .requests import Judged, JudgeRequest


def geval(
    client: JudgeClient,
    items: Sequence[Judged],
    criteria: str | Path,
    *,
    scoring: str = "auto",
    num_samples: int = 20,
) -> dict[str, Figure]:
    """`{"geval": …, "geval_reference": …, "geval_normalised": …, "geval_ratio": …}`."""
    raise NotImplementedError


def geval_requests(
    items: Sequence[Judged], criteria: str | Path, *, scoring: str = "auto", num_samples: int = 20
) -> list[JudgeRequest]:
    """The questions of [`geval`], for a dry run."""
    raise NotImplementedError
