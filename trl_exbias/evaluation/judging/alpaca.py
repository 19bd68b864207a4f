"""Length-controlled win rate of AlpacaEval 2.0: our questions and answers, the package `alpaca-eval`'s prompt and fit."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import MissingPackageError, UsageError
from ..figures import Figure
from .client import JudgeClient
from .requests import JudgeAnswer, Judged, JudgeRequest, Message
from .win_rate import check_ids, model_is_first


NUM_PROMPTS = 805
PROMPT_FILE = "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"
# As in AlpacaEval's annotator `weighted_alpaca_eval_gpt4_turbo`.
SETTINGS: dict[str, Any] = {"max_tokens": 1, "temperature": 1.0, "top_logprobs": 5}


def alpaca_win_rate(
    client: JudgeClient,
    items: Sequence[Judged],
    *,
    seed: int = 0,
    model_name: str = "model",
    baseline_name: str = "gpt4_1106_preview",
) -> dict[str, Figure]:
    """
    Win rate and length-controlled win rate of AlpacaEval 2.0 (Dubois et al. 2024), as Cen 2024, Section 5.2, reports them.

    The judge gets the package's own prompt and is asked for one token; the preference is the share of the two letters'
    probabilities, or the letter itself from an endpoint without log-probabilities. The package's regression then works
    out what the win rate would be at equal length. For figures like published ones, the judge is `gpt-4-1106-preview`.

    Args:
        client ([`JudgeClient`]): The judge.
        items (`Sequence[Judged]`):
            AlpacaEval's prompts: `id` is the prompt's place in its file, `"0"` to `"804"`, `reference` the baseline's
            output. The fit knows the difficulty of these prompts and of no others: elsewhere use [`win_rate`].
        seed (`int`): With the id it decides which text is shown first.
        model_name, baseline_name (`str`): Names that the package keeps.

    Returns:
        `dict[str, Figure]`: `alpaca_win_rate` and `alpaca_length_controlled_win_rate`, 0 to 1. The interval of the latter
        takes the fit as given, as the package's standard error does.

    Raises:
        ImportError: without the package.
        ValueError: for ids that are not AlpacaEval's.
        OSError: if the package cannot read its table of difficulties, which it loads from the hub.
        JudgeError: where the endpoint refuses to answer at all.
    """
    requests = alpaca_requests(items, seed=seed)
    answers = client.ask(requests, "AlpacaEval")
    preferences = {
        item.id: preference(answer, model_is_first(seed, item.id)) for item, answer in zip(items, answers, strict=True)
    }
    annotations = alpaca_annotations(
        items, preferences, annotator=client.model, model_name=model_name, baseline_name=baseline_name
    )
    controlled = length_controlled(annotations)
    settings = {"judge": client.model, "template": _template_id(), "order": f"shuffled by seed {seed}", **SETTINGS}
    values = {
        "alpaca_win_rate": preferences,
        "alpaca_length_controlled_win_rate": {**dict.fromkeys(preferences), **controlled},
    }
    return {name: Figure.over_prompts(name, value, settings=settings) for name, value in values.items()}


def alpaca_requests(items: Sequence[Judged], *, seed: int = 0) -> list[JudgeRequest]:
    """The questions of [`alpaca_win_rate`], to look at or to [`estimate`], without asking them."""
    _check(items)
    parts = _messages()
    requests = []
    for item in items:
        texts = (item.completion, item.reference)
        first, second = texts if model_is_first(seed, item.id) else texts[::-1]
        values = {"instruction": item.prompt, "output_1": first, "output_2": second}
        messages = tuple({**part, "content": _fill(part["content"], values)} for part in parts)
        requests.append(JudgeRequest(messages, _template_id(), **SETTINGS))
    return requests


def preference(answer: JudgeAnswer | None, model_first: bool) -> float | None:
    """From 0, the baseline's text is preferred, to 1, the model's; `None` where the answer names neither."""
    if answer is None:
        return None
    alternatives = answer.tokens[0][1] if answer.tokens else {}
    first, second = (math.exp(alternatives.get(letter, -math.inf)) for letter in ("m", "M"))
    if first + second == 0:
        if alternatives or answer.text not in ("m", "M"):
            return None
        first, second = float(answer.text == "m"), float(answer.text == "M")
    return (first if model_first else second) / (first + second)


def alpaca_annotations(
    items: Sequence[Judged],
    preferences: Mapping[str, float | None],
    *,
    annotator: str,
    model_name: str = "model",
    baseline_name: str = "gpt4_1106_preview",
) -> list[dict[str, Any]]:
    """Preferences (0 to 1, by id) in the package's own form, without those that are missing: 1 is the baseline's, 2 the model's."""
    _check(items)
    return [
        {
            "index": int(item.id),
            "instruction": item.prompt,
            "output_1": item.reference,
            "output_2": item.completion,
            "generator_1": baseline_name,
            "generator_2": model_name,
            "annotator": annotator,
            "preference": 1.0 + preference,
        }
        for item in items
        if (preference := preferences.get(item.id)) is not None
    ]


def length_controlled(annotations: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """
    The package's fit `length_controlled_v1`: each prompt's chance of a win at equal length, 0 to 1, by id. Their mean is
    the length-controlled win rate.

    Raises:
        ImportError: without the package.
        OSError: if the package cannot read its table of difficulties.
    """
    package = _package()
    import pandas as pd

    if not annotations:
        return {}
    table = pd.DataFrame(list(annotations))
    from alpaca_eval.metrics import glm_winrate

    try:
        glm_winrate.get_length_controlled_winrate(table, save_weights_dir=None)
    except OSError as error:
        raise OSError(
            f"alpaca-eval {package.__version__} cannot read `df_gamed.csv` of the data set tatsu-lab/alpaca_eval ({error}). "
            "It has to be in the hub's cache: run once on a machine with a connection, or copy its cache."
        ) from error
    return {str(index): float(value) for index, value in zip(table["index"], table["glm_preference"], strict=True)}


def _package() -> Any:
    try:
        import alpaca_eval
    except ImportError as error:
        raise MissingPackageError(
            f"AlpacaEval's win rates need the package `alpaca-eval` ({error}): pip install 'trl-exbias[alpaca]'. For a win "
            "rate that allows for length without it, on any prompts, use `win_rate`."
        ) from error
    return alpaca_eval


def _check(items: Sequence[Judged]) -> None:
    check_ids(items)
    for item in items:
        if not re.fullmatch("0|[1-9][0-9]*", item.id) or int(item.id) >= NUM_PROMPTS:
            raise UsageError(
                f"The id {item.id!r} is none of AlpacaEval's prompts, which go from '0' to '{NUM_PROMPTS - 1}' in the order "
                "of its file. Its length-controlled win rate is defined for those only; elsewhere use `win_rate`."
            )


def _messages() -> list[Message]:
    """The package's prompt, its places for the texts still empty."""
    package = _package()
    from alpaca_eval.utils import prompt_to_chatml

    file = Path(package.__file__).parent / "evaluators_configs" / PROMPT_FILE
    return prompt_to_chatml(file.read_text(encoding="utf-8"))


def _fill(text: str, values: Mapping[str, str]) -> str:
    # In one pass: a text that mentions `{output_2}` itself stays as it is. (The prompt has other braces: no `format`.)
    return re.sub(r"\{(instruction|output_1|output_2)\}", lambda found: values[found[1]], text)


def _template_id() -> str:
    return f"alpaca_eval_clf-{_package().__version__}"
