"""What suites with right and wrong answers have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..figures import Figure
from ..grading import Grading, Outcome


def without_answer(name: str, gradings: Mapping[str, Sequence[Grading]], settings: dict[str, Any]) -> Figure:
    """The share of responses in which no final answer was found: counted as not solved, and here by themselves."""
    shares = {
        prompt: sum(grading.outcome is Outcome.UNPARSEABLE_ANSWER for grading in row) / len(row)
        for prompt, row in gradings.items()
    }
    return Figure.over_prompts(name, shares, higher_is_better=False, settings=settings)
