"""How long the rows of a run are, in tokens, from the first of them."""

import sys
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..chat.conversations import TEMPLATE_KWARGS, message_columns, normalised, split_turns, template_kwargs_of
from ..chat.prompts import place_response, token_ids
from ..core.branches import CONTEXT_LENGTH, PROMPT, REFERENCE
from ..methods.dad_dagger.trajectories import starts
from ..methods.rac_template import CorrectionTemplate


@dataclass(frozen=True)
class Lengths:
    """
    Tokens of contexts and of gold responses, as training has them.

    Args:
        rows (`list[tuple[int, int]]`): `(context, response)` of each row.
        num_sources (`int`): Rows of the data that they were made of: a conversation may be several rows, a document many.
        whole (`list[tuple[int, int]]`): `(context, response)` of the data's rows before they were cut to `max_length`.
        corrections (`list[int]`): Lengths of the contexts in which the policy is shown the reference; empty where it is not.
    """

    rows: list[tuple[int, int]]
    num_sources: int
    whole: list[tuple[int, int]]
    corrections: list[int] = field(default_factory=list)

    @property
    def mean_context(self) -> float:
        return sum(context for context, _ in self.rows) / max(1, len(self.rows))

    @property
    def mean_response(self) -> float:
        return sum(response for _, response in self.rows) / max(1, len(self.rows))

    @property
    def mean_correction(self) -> float:
        return sum(self.corrections) / max(1, len(self.corrections))

    def scaled(self, num_sources: int | None) -> int | None:
        """Rows that `num_sources` rows of the data would become."""
        return None if num_sources is None else round(len(self.rows) * num_sources / max(1, self.num_sources))


def measure(
    rows: Dataset,
    num_sources: int,
    form: str,
    tokenizer: PreTrainedTokenizerBase,
    args: Any,
    cuts_trajectories: bool,
    shown: str | None = None,
) -> Lengths:
    """
    Args:
        shown (`str`, *optional*): The template that shows the policy the reference, whose contexts are measured too.
        rows (`datasets.Dataset`): The first rows.
        num_sources (`int`): Rows of the source that they were made of.
        form (`str`): As [`~trl_exbias.chat.data_checks.dataset_form`] returns it.
        cuts_trajectories (`bool`): Whether the method trains on trajectories instead of whole responses.
    """
    rows = normalised(rows, template_kwargs_of({TEMPLATE_KWARGS: args.chat_template_kwargs}))
    if args.rollout_turns == "all" and form in ("messages", "prompt-completion") and message_columns(rows):
        rows, form = split_turns(rows), "prompt-completion"
    whole, corrections = [], []
    template = None if shown is None else CorrectionTemplate(shown)
    for row in rows:
        if form == "tokenized" and "labels" not in row:
            row = {**row, "labels": row["input_ids"]}
        ids = token_ids(row, form, tokenizer, args.dataset_text_field)
        place = place_response({"labels": ids, **row, "input_ids": ids}, form, tokenizer)
        if place.get(PROMPT) is not None:
            whole.append((len(place[PROMPT]), len(place[REFERENCE])))
        else:
            whole.append((place[CONTEXT_LENGTH], len(ids) - place[CONTEXT_LENGTH]))
        if template is not None:
            corrections.append(len(template.context_ids(row, tokenizer)))
    if cuts_trajectories and (form == "text" or (form == "tokenized" and "labels" not in rows.column_names)):
        length = args.context_length + args.rollout_length
        stride = args.stride or args.rollout_length
        number = sum(len(starts(context + response, length, stride)) for context, response in whole)
        return Lengths([(args.context_length, args.rollout_length)] * number, num_sources, whole)
    limit = sys.maxsize if args.max_length is None else args.max_length
    cut = [(min(context, limit), min(response, max(0, limit - context))) for context, response in whole]
    if cuts_trajectories:
        stride = args.stride or args.rollout_length
        cut = [
            (context + start, min(args.rollout_length, response - start))
            for context, response in cut
            for start in range(0, response, stride)
        ]
    return Lengths(cut, num_sources, whole, corrections)
