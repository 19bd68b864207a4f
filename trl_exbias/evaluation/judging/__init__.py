"""Large language models as judges: win rate and G-Eval, through any OpenAI-compatible endpoint."""

from .client import JudgeClient
from .estimate import Estimate, estimate
from .geval import geval, geval_requests
from .requests import JudgeAnswer, Judged, JudgeRequest, Usage
from .win_rate import win_rate, win_rate_requests


__all__ = [
    "Estimate",
    "JudgeAnswer",
    "JudgeClient",
    "JudgeRequest",
    "Judged",
    "Usage",
    "estimate",
    "geval",
    "geval_requests",
    "win_rate",
    "win_rate_requests",
]
