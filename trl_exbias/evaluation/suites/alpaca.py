"""AlpacaEval 2.0: win rate and length-controlled win rate against the benchmark's reference outputs, by a judge."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..figures import Figure
from ..subject import Sampling
from ..work import Work
from .suite import Suite


if TYPE_CHECKING:
    from ..judging import Judged


def _judged(work: Work, texts: dict[str, str]) -> "list[Judged]":
    # The judge reads the instruction itself, whatever the model's prompt made of it.
    instructions = {item.id: item.row.get("instruction", item.prompt) for item in work.items}
    return [replace(one, prompt=instructions[one.id]) for one in work.judged(texts)]


def _figures(work: Work) -> dict[str, Figure]:
    from ..judging.alpaca import alpaca_win_rate

    return work.over_repetitions(
        lambda responses: alpaca_win_rate(
            work.asked_judge,
            _judged(work, {key: one.text for key, one in responses.items()}),
            seed=work.options.seed,
            model_name=work.subject.name,
        )
    )


def _requests(work: Work, texts: dict[str, str]) -> list[Any]:
    from ..judging.alpaca import alpaca_requests

    return alpaca_requests(_judged(work, texts), seed=work.options.seed)


SUITE = Suite(
    name="alpaca",
    figures=_figures,
    requests=_requests,
    # The prompts' places in this file are what the package's regression knows them by.
    data=("hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval_gpt4_baseline.json", None, "train"),
    prompt_template="{{ instruction }}",
    completion_template="{{ output }}",
    as_conversation=True,
    sampling=Sampling(temperature=0.7, max_new_tokens=1024),
    takes_text=False,
    packages={"alpaca_eval": "alpaca", "openai": "eval"},
)
