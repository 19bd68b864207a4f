"""G-Eval: a judge's score of completions, next to its score of the true continuations."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...core.errors import UsageError
from ..figures import Figure
from .client import JudgeClient
from .endpoint import JudgeError
from .geval_criteria import Criteria, read_criteria
from .geval_score import expected_score, read_score
from .requests import JudgeAnswer, Judged, JudgeRequest
from .template import JudgeTemplate, last_word
from .win_rate import check_ids, warn_of_unreadable


logger = logging.getLogger(__name__)

SCORINGS = ("auto", "logprobs", "samples")
# The most that OpenAI and vLLM give.
TOP_LOGPROBS = 20
# `Score: 4`, and a little more in case the judge does not keep to it.
SCORE_TOKENS = 16
UNWRITTEN_STEPS = "(the steps that the judge writes)"


def geval(
    client: JudgeClient,
    items: Sequence[Judged],
    criteria: str | Path | Criteria,
    *,
    scoring: str = "auto",
    num_samples: int = 20,
) -> dict[str, Figure]:
    r"""
    G-Eval (Liu et al. 2023; Pozzi 2025, Section 6.2): the judge is given criteria and a chain of thought, the steps to follow,
    and returns a score, which is mapped from its scale to 0 to 1. The reference is scored by the same questions.

    A score is the expected one, $\sum_s p(s)\, s$, over the probabilities of the score tokens, where the endpoint returns
    them, else the mean over samples at temperature 1; `settings["scoring"]` says which. An answer without a plain
    score is missing: left out, and counted in `Figure.missing`.

    Args:
        client ([`JudgeClient`]): The judge.
        items (`Sequence[Judged]`): One a prompt; `reference` is the true continuation.
        criteria (`str`, `Path` or [`Criteria`]):
            A name (`"a_song_of_ice_and_fire"`, `"the_x_files"`, `"stargate"`, `"fringe"`, `"doctor_who"`: Pozzi 2025, Table 1) or
            a YAML file, see [`read_criteria`]. Steps that a file does not have are written by the judge, once.
        scoring (`str`): `"logprobs"`, `"samples"`, or `"auto"`: samples only where there are no log-probabilities.
        num_samples (`int`, defaults to `20`): Samples of each text; 20 as in Liu et al.

    Returns:
        `dict[str, Figure]`:
            - `geval`: score of the completion, 0 to 1.
            - `geval_reference`: score of the true continuation, 0 to 1.
            - `geval_normalised`: score of the completion over the mean score of the true continuations: its mean is the
              paper's normalised average (Pozzi 2025, Section 6.3 and Table 4). The interval takes the divisor as given.
            - `geval_ratio`: score of the completion over that of the same prompt's true continuation. Missing where the
              latter is 0 or missing; a few low references can carry this mean.

    Raises:
        ValueError: for criteria that cannot be used, ids that are not unique, or a scoring that does not fit the scale.
        JudgeError: where the endpoint refuses to answer at all.
    """
    criteria = read_criteria(criteria)
    _check(items, criteria, scoring, num_samples)
    written = not criteria.steps
    if written:
        criteria = replace(criteria, steps=_written_steps(client, criteria))
    if scoring == "auto":
        scoring = _possible_scoring(client, items, criteria)
    requests = _requests(items, criteria, scoring, num_samples)
    answers = client.ask(requests, "G-Eval")
    read = [_score(answer, criteria.scale, scoring) for answer in answers]
    warn_of_unreadable(answers, read, "score")
    samples, scores = num_samples if scoring == "samples" else 1, iter(read)
    own: dict[str, float | None] = {}
    true: dict[str, float | None] = {}
    for item in items:
        for of in (own, true):
            of[item.id] = _mean([next(scores) for _ in range(samples)])
    settings = {
        **client.settings,
        "judge_temperature": 1.0 if scoring == "samples" else client.temperature,
        "judge_max_tokens": client.max_tokens if scoring == "samples" else SCORE_TOKENS,
        "template": _template().id,
        "criteria": criteria.id,
        "steps": "written by the judge" if written else "given",
        "scoring": f"mean of {num_samples} samples" if scoring == "samples" else "probabilities of the score tokens",
    }
    return _figures(own, true, settings)


def geval_requests(
    items: Sequence[Judged], criteria: str | Path | Criteria, *, scoring: str = "auto", num_samples: int = 20
) -> list[JudgeRequest]:
    """
    The questions of [`geval`], to look at or to [`estimate`], without asking them. `"auto"` is taken for `"logprobs"`;
    steps that the judge is to write are asked for by the first question and stand as a placeholder in the others.
    """
    criteria = read_criteria(criteria)
    _check(items, criteria, scoring, num_samples)
    first = []
    if not criteria.steps:
        first = [_steps_request(criteria)]
        criteria = replace(criteria, steps=(UNWRITTEN_STEPS,))
    by_samples = scoring == "samples" or (scoring == "auto" and criteria.scale[1] > 9)
    return first + _requests(items, criteria, "samples" if by_samples else "logprobs", num_samples)


def _check(items: Sequence[Judged], criteria: Criteria, scoring: str, num_samples: int) -> None:
    check_ids(items)
    if scoring not in SCORINGS:
        raise UsageError(f"`scoring` is {scoring!r}; it must be one of {', '.join(SCORINGS)}.")
    if scoring == "logprobs" and criteria.scale[1] > 9:
        raise UsageError(
            f"The scale of {criteria.name} goes to {criteria.scale[1]}; scores of two digits have no token of their own. "
            "Use a scale up to 9, or `scoring='samples'`."
        )
    if num_samples < 1:
        raise UsageError(f"`num_samples` is {num_samples}; it must be at least 1.")


def _template() -> JudgeTemplate:
    variables = {"description", "low", "high", "criteria", "steps", "prompt", "completion"}
    return JudgeTemplate("geval", variables, ("geval",))


def _requests(items: Sequence[Judged], criteria: Criteria, scoring: str, num_samples: int) -> list[JudgeRequest]:
    """For each item the questions about its completion, then those about its reference."""
    template = _template()
    fixed = {**_fixed(criteria), "steps": _lines(criteria.steps, numbered=True)}
    requests = []
    for item in items:
        for text in (item.completion, item.reference):
            messages = template.messages({"prompt": item.prompt, "completion": text}, **fixed)
            if scoring == "logprobs":
                requests.append(JudgeRequest(messages, template.id, max_tokens=SCORE_TOKENS, top_logprobs=TOP_LOGPROBS))
            else:
                requests += [
                    JudgeRequest(messages, template.id, temperature=1.0, sample=number) for number in range(num_samples)
                ]
    return requests


def _fixed(criteria: Criteria) -> dict[str, object]:
    low, high = criteria.scale
    return {"description": criteria.description, "low": low, "high": high, "criteria": _lines(criteria.criteria)}


def _lines(texts: Sequence[str], numbered: bool = False) -> str:
    return "\n".join(f"{i}. {text}" if numbered else f"- {text}" for i, text in enumerate(texts, 1))


def _steps_request(criteria: Criteria) -> JudgeRequest:
    template = JudgeTemplate("geval_steps", {"description", "low", "high", "criteria"}, ("geval_steps",))
    return JudgeRequest(template.messages({}, **_fixed(criteria)), template.id)


def _written_steps(client: JudgeClient, criteria: Criteria) -> tuple[str, ...]:
    answer = client.ask([_steps_request(criteria)], "Steps of G-Eval")[0]
    text = last_word(answer.text) if answer else None
    lines = [re.sub(r"^(?:\d+[.)]|[-*•])\s+", "", line.strip()) for line in (text or "").splitlines()]
    steps = tuple(line for line in lines if line)
    if not steps:
        raise JudgeError(f"{client.model} wrote no evaluation steps; give `steps` in the criteria's file.")
    return steps


def _possible_scoring(client: JudgeClient, items: Sequence[Judged], criteria: Criteria) -> str:
    """`"logprobs"`, or `"samples"` where the endpoint does not return log-probabilities of a score."""
    why = "scores of two digits have no token of their own" if criteria.scale[1] > 9 else None
    if why is None and items:
        # Asked about the first text, which the evaluation asks about anyway.
        try:
            answer = client.ask(_requests(items[:1], criteria, "logprobs", 1)[:1], "G-Eval, first score")[0]
        except JudgeError as error:
            if "logprob" not in str(error):
                raise
            why = "the endpoint refuses to return log-probabilities"
        else:
            if answer is not None and not any(alternatives for _, alternatives in answer.tokens):
                why = "the endpoint returns no log-probabilities"
            elif answer is not None and "<think>" in answer.text:
                why = "the judge thinks before it answers"
    if why is not None:
        logger.warning(f"G-Eval by the mean over samples, many answers to each question: {why}.")
    return "logprobs" if why is None else "samples"


def _score(answer: JudgeAnswer | None, scale: tuple[int, int], scoring: str) -> float | None:
    """Score from 0 to 1."""
    if answer is None:
        return None
    score = expected_score(answer.tokens, scale) if scoring == "logprobs" else read_score(answer.text, scale)
    return None if score is None else (score - scale[0]) / (scale[1] - scale[0])


def _mean(scores: Sequence[float | None]) -> float | None:
    there = [score for score in scores if score is not None]
    return sum(there) / len(there) if there else None


def _figures(
    own: Mapping[str, float | None], true: Mapping[str, float | None], settings: Mapping[str, object]
) -> dict[str, Figure]:
    there = [score for score in true.values() if score is not None]
    divisor = sum(there) / len(there) if there else 0.0
    normalised = {key: None if score is None or not divisor else score / divisor for key, score in own.items()}
    ratio = {key: None if score is None or not (of := true[key]) else score / of for key, score in own.items()}
    values = {"geval": own, "geval_reference": true, "geval_normalised": normalised, "geval_ratio": ratio}
    return {name: Figure.over_prompts(name, value, settings=dict(settings)) for name, value in values.items()}
