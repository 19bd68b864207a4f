"""How often a judge prefers the model's completion to the reference."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...core.errors import UsageError
from ..figures import Figure
from .client import JudgeClient
from .length_adjusted import length_adjusted_win_rate
from .requests import JudgeAnswer, Judged, JudgeRequest
from .template import JudgeTemplate
from .verdict import read_verdict


logger = logging.getLogger(__name__)

TASKS = ("summarization", "qa")


def win_rate(
    client: JudgeClient,
    items: Sequence[Judged],
    *,
    seed: int = 0,
    both_orders: bool = False,
    task: str | Path = "summarization",
    against: str = "reference",
) -> dict[str, Figure]:
    """
    Win rate of completions against references, or against another model's completions in their place (Cen 2024, App. A.1).

    A completion gets 1 where the judge prefers it and 0 where it prefers the reference. With `both_orders`, the judge is
    asked twice, and two verdicts that disagree are a tie of ½. Equal texts are a tie, not asked about. Without a plain
    verdict (of both orders) the prompt is missing: it is left out and counted in `Figure.missing`.

    Args:
        client ([`JudgeClient`]): The judge.
        items (`Sequence[Judged]`): One a prompt.
        seed (`int`): With the prompt's id it decides which text is shown first, whatever else is in the list.
        both_orders (`bool`): Each pair in either order: twice the cost, no preference for a place.
        task (`str`):
            `"summarization"` (the paper's template, with its misprint of the second slot put right), `"qa"` (ours, in the
            same form), or a `.jinja` file with `{{ prompt }}`, `{{ a }}` and `{{ b }}` that asks for a last line
            `Preferred: A` or `Preferred: B`.
        against (`str`): What the completions are compared with, for the figures' settings: another model's name where
            `reference` holds its completions.

    Returns:
        `dict[str, Figure]`: `win_rate`, and [`length_adjusted_win_rate`].

    Raises:
        ValueError: for ids that are not unique, or a template that cannot be used.
        JudgeError: where the endpoint refuses to answer at all.
    """
    verdicts, settings = judge_pairs(client, items, seed=seed, both_orders=both_orders, task=task)
    settings["against"] = against
    return {
        "win_rate": Figure.over_prompts("win_rate", verdicts, settings=settings),
        "length_adjusted_win_rate": length_adjusted_win_rate(items, verdicts, settings=settings),
    }


def win_rate_requests(
    items: Sequence[Judged], *, seed: int = 0, both_orders: bool = False, task: str | Path = "summarization"
) -> list[JudgeRequest]:
    """The questions of [`win_rate`], to look at or to [`estimate`], without asking them."""
    template = _template(task)
    return [request for _, _, request in _questions(items, seed, both_orders, template)]


def judge_pairs(
    client: JudgeClient, items: Sequence[Judged], *, seed: int, both_orders: bool, task: str | Path
) -> tuple[dict[str, float | None], dict[str, object]]:
    """The verdict on each prompt (1, ½, 0 or `None`), by its id, and the settings it was made with."""
    template = _template(task)
    questions = _questions(items, seed, both_orders, template)
    answers = client.ask([request for _, _, request in questions], "Judging pairs")
    choices = [None if answer is None else read_verdict(answer.text) for answer in answers]
    warn_of_unreadable(answers, choices, "verdict")
    wins: dict[str, list[float | None]] = {item.id: [] for item in items}
    for (item, place, _), choice in zip(questions, choices, strict=True):
        wins[item.id].append(None if choice is None else float(choice == place))
    verdicts = {item.id: 0.5 if _alike(item) else _mean(wins[item.id]) for item in items}
    order = "both" if both_orders else f"shuffled by seed {seed}"
    return verdicts, {**client.settings, "template": template.id, "order": order}


def warn_of_unreadable(answers: Sequence[JudgeAnswer | None], read: Sequence[Any], what: str) -> None:
    """Says how many answers do not give what was asked for, and shows one."""
    texts = [answer.text for answer, found in zip(answers, read, strict=True) if answer is not None and found is None]
    if texts:
        logger.warning(
            f"{len(texts)} of {len(answers)} answers give no plain {what} and count as missing; the first ends with "
            f"{texts[0][-200:]!r}."
        )


def check_ids(items: Sequence[Judged]) -> None:
    """
    Raises:
        ValueError: if two items have the same id.
    """
    ids = [item.id for item in items]
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise UsageError(f"Two prompts have the id {twice!r}; figures are kept by id, so each needs its own.")


def model_is_first(seed: int, id: str) -> bool:
    """Whether the model's text is shown first, from the seed and the prompt's id alone."""
    return hashlib.sha256(f"{seed}:{id}".encode()).digest()[0] % 2 == 0


def _template(task: str | Path) -> JudgeTemplate:
    return JudgeTemplate(task, {"prompt", "a", "b"}, TASKS)


def _questions(
    items: Sequence[Judged], seed: int, both_orders: bool, template: JudgeTemplate
) -> list[tuple[Judged, str, JudgeRequest]]:
    """Item, the letter under which its completion is shown, and the question."""
    check_ids(items)
    questions = []
    for item in items:
        if _alike(item):
            continue
        first = "A" if model_is_first(seed, item.id) else "B"
        for place in ("A", "B") if both_orders else (first,):
            a, b = (item.completion, item.reference) if place == "A" else (item.reference, item.completion)
            messages = template.messages({"prompt": item.prompt, "a": a, "b": b})
            questions.append((item, place, JudgeRequest(messages, template.id)))
    return questions


def _alike(item: Judged) -> bool:
    return item.completion.strip() == item.reference.strip()


def _mean(wins: Sequence[float | None]) -> float | None:
    there = [win for win in wins if win is not None]
    return sum(there) / len(there) if len(there) == len(wins) else None
