"""Large language models as judges: win rate and G-Eval, through any OpenAI-compatible endpoint."""

from .alpaca import alpaca_requests, alpaca_win_rate
from .client import JudgeClient
from .endpoint import JudgeError
from .estimate import Estimate, estimate
from .geval import geval, geval_requests
from .geval_criteria import Criteria, named_criteria, read_criteria
from .length_adjusted import length_adjusted_win_rate
from .requests import JudgeAnswer, Judged, JudgeRequest, Usage
from .win_rate import win_rate, win_rate_requests


__all__ = [
    "Criteria",
    "Estimate",
    "JudgeAnswer",
    "JudgeClient",
    "JudgeError",
    "JudgeRequest",
    "Judged",
    "Usage",
    "alpaca_requests",
    "alpaca_win_rate",
    "estimate",
    "geval",
    "geval_requests",
    "length_adjusted_win_rate",
    "named_criteria",
    "read_criteria",
    "win_rate",
    "win_rate_requests",
]
