"""One model before one suite: the prompts in its tokens, its responses, and what a figure's settings must say of them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from . import tasks
from .cuts import Cuts
from .figures import Figure
from .generations import Generation
from .options import EvaluationOptions
from .subject import EvaluatedModel, Sampling


if TYPE_CHECKING:
    from .judging import JudgeClient, Judged
    from .suites.suite import Suite


@dataclass
class Work:
    """
    What a suite's figures are made from.

    Args:
        suite ([`Suite`]), subject ([`EvaluatedModel`]), rows ([`Rows`]), options ([`EvaluationOptions`]): What meets here.
        judge ([`JudgeClient`], *optional*): For suites that ask one.
    """

    suite: "Suite"
    subject: EvaluatedModel
    rows: tasks.Rows
    options: EvaluationOptions
    judge: "JudgeClient | None" = None
    #: For a suite that draws: the figures of its picture, which need not be over prompts.
    drawn: dict[str, Figure] = field(default_factory=dict)
    #: For a suite that looks step by step: `mean`, `low` and `high` of each step, by the figure's name.
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @cached_property
    def sampling(self) -> Sampling:
        """The suite's, with what was asked otherwise."""
        asked = {name: getattr(self.options, name) for name in ("temperature", "max_new_tokens", "num_generations")}
        assert self.suite.sampling is not None, f"{self.suite.name} has no responses"
        own = replace(self.suite.sampling, top_p=self.options.top_p, seed=self.options.seed)
        return replace(own, **{name: value for name, value in asked.items() if value is not None})

    @cached_property
    def _items_and_cuts(self) -> tuple[list[tasks.Item], Cuts | None]:
        if not self.rows.is_text:
            return tasks.items(self.rows, self.suite, self.options, self.subject.tokenizer), None
        horizon = self.options.horizon if self.suite.sampling is None else self.sampling.max_new_tokens
        return tasks.text_items(self.rows, self.suite, self.options, self.subject.tokenizer, horizon)

    @property
    def items(self) -> list[tasks.Item]:
        """The prompts."""
        return self._items_and_cuts[0]

    @property
    def cuts(self) -> Cuts | None:
        """Where the prompts were cut from plain text."""
        return self._items_and_cuts[1]

    @cached_property
    def repetitions(self) -> list[dict[str, Generation]]:
        """The responses by the prompt's id, one dictionary for each response that a prompt gets."""
        found = self.subject.generate([item.ids for item in self.items], self.sampling)
        return [
            {item.id: row[number] for item, row in zip(self.items, found, strict=True)}
            for number in range(self.sampling.num_generations)
        ]

    def kept_repetitions(self) -> list[dict[str, Generation | None]]:
        """The responses that there are, without making any."""
        store = self.subject.store(self.sampling)
        numbers = range(self.sampling.num_generations)
        return [{item.id: store.find(item.ids, number) for item in self.items} for number in numbers]

    @property
    def asked_judge(self) -> "JudgeClient":
        """The judge, for a suite that asks one."""
        assert self.judge is not None
        return self.judge

    @property
    def references(self) -> dict[str, list[str]]:
        """What the responses are compared with, by the prompt's id."""
        return {item.id: item.references for item in self.items}

    def judged(self, texts: dict[str, str]) -> "list[Judged]":
        """These responses, as a judge is shown them: next to the first reference."""
        from .judging import Judged

        return [Judged(item.id, item.prompt, texts[item.id], item.references[0]) for item in self.items]

    def settings(self) -> dict[str, Any]:
        """What shapes this suite's figures, whichever model they are of."""
        found = dict(self.rows.settings)
        if self.rows.is_text:
            found |= {"context_length": self.options.context_length, "num_prompts": len(self.items)}
        else:
            conversation = tasks.is_conversation(self.suite, self.options, self.subject.tokenizer)
            found["as_conversation"] = conversation
        if self.suite.sampling is not None:
            found |= {**self.sampling.as_dict(), "engine": self.options.engine}
        return found

    def over_repetitions(self, measure: Callable[[dict[str, Generation]], dict[str, Figure]]) -> dict[str, Figure]:
        """A suite's figures for each repetition, made into one of each name; see [`combined`]."""
        each = [measure(repetition) for repetition in self.repetitions]
        return {name: combined([figures[name] for figures in each]) for name in each[0]}


def combined(figures: list[Figure]) -> Figure:
    """
    One figure of repeated generations: a prompt's value is the mean of its values, the interval is over prompts, and `std` is
    the (population) standard deviation of the figure from one repetition to the next.
    """
    if len(figures) == 1:
        return figures[0]
    first = figures[0]
    keys = dict.fromkeys(key for figure in figures for key in figure.per_prompt)
    values: dict[str, float | None] = {
        key: float(np.mean([figure.per_prompt[key] for figure in figures if key in figure.per_prompt])) for key in keys
    }
    num_prompts = max(figure.n + figure.missing for figure in figures)
    values |= {f"missing {i}": None for i in range(num_prompts - len(values))}
    return Figure.over_prompts(
        first.name,
        values,
        higher_is_better=first.higher_is_better,
        settings=first.settings,
        std=float(np.std([figure.mean for figure in figures])),
    )
