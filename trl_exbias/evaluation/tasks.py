"""What a model is asked: rows of data as prompts in token ids, with the references that its responses are compared with."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UsageError
from .cuts import Cuts, cut_documents, response_ids
from .options import EvaluationOptions
from .prompted import as_conversation, last_turns, prompt_and_response, readable


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from .suites.suite import Suite

logger = logging.getLogger(__name__)

#: Contexts cut from plain text, where `num_examples` does not say.
TEXT_EXAMPLES = 256
_CONVERSATIONS = {"prompt", "messages", "conversations"}


@dataclass(frozen=True)
class Item:
    """
    One prompt.

    Args:
        id (`str`): Its row's number in the data; for plain text, the document's and the place in it.
        ids (`list[int]`): What the model is given.
        prompt (`str`): The same as a reader sees it: without the chat template's tokens.
        references (`list[str]`): What a person wrote in answer; empty where the data have none.
        row (`dict`): The row's columns.
        response (`list[int]`): Token ids of the first reference, as it comes after the prompt, up to what ends it.
    """

    id: str
    ids: list[int]
    prompt: str
    references: list[str]
    row: dict[str, Any] = field(default_factory=dict)
    response: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Rows:
    """
    A suite's data before any tokenizer.

    Args:
        dataset (`datasets.Dataset`): `prompt` and `completion`, or `text`.
        raw (`datasets.Dataset`): The same rows with all their columns.
        numbers (`list[int]`): Their places in the data.
        settings (`dict`): What a figure's settings say of them.
    """

    dataset: "Dataset"
    raw: "Dataset"
    numbers: list[int]
    settings: dict[str, Any]

    @property
    def is_text(self) -> bool:
        """Whether they are documents, to be cut into contexts."""
        return "prompt" not in self.dataset.column_names


def load(suite: "Suite", options: EvaluationOptions) -> Rows:
    """
    The rows that a suite is evaluated on: the data given for it, or its own.

    Raises:
        ValueError: if it has neither, or the columns do not fit; names them.
    """
    from datasets import load_dataset

    from ..chat.conversations import normalised
    from ..settings.data_arguments import DataArguments
    from ..settings.datasets import load_rows, render

    name, config, split = _source(suite, options)
    try:
        if name.startswith("hf://"):
            raw = load_dataset("json", data_files=name, split=split)
        else:
            raw = load_rows(name, config, split, whole_documents=True)
    except (ValueError, OSError) as error:  # `datasets` raises a handful of kinds of each
        raise UsageError(f"The data of `{suite.name}` cannot be loaded: {error.__cause__ or error}") from error
    if options.references_column is not None and options.references_column not in raw.column_names:
        raise UsageError(
            f"--references_column {options.references_column} is not a column of the data (columns: "
            f"{', '.join(raw.column_names)})."
        )
    templates = _templates(suite, options, raw.column_names)
    is_rendered, numbers = any(templates.values()), list(range(len(raw)))
    if is_rendered or not _CONVERSATIONS.isdisjoint(raw.column_names):
        numbers = spread(len(raw), options.num_examples)
        raw = raw.select(numbers)
    if options.references_column is not None:
        _check_references(raw, numbers, options.references_column)
    if not is_rendered:
        _check_rows(raw, numbers, suite, options)
    raw = normalised(raw, options.template_kwargs)
    if not any(templates.values()):
        dataset = _known_form(suite, options, raw)
    elif templates["completion_template"]:
        dataset = render(raw, DataArguments(**templates))  # type: ignore[arg-type]  # its templates alone
    else:
        dataset = render(raw, DataArguments(text_template=templates["prompt_template"])).rename_column("text", "prompt")
    if "prompt" in dataset.column_names:
        _check_count(len(dataset), suite)
    if suite.needs_references and "prompt" in dataset.column_names and not _has_references(dataset, options):
        raise UsageError(
            f"`{suite.name}` compares with references, and the data have none (columns: {', '.join(raw.column_names)}). "
            "Name them with --completion_template or --references_column."
        )
    if is_rendered:
        _check_rows(dataset, numbers, suite, options)
    settings: dict[str, Any] = {
        "data": name,
        "data_config": config,
        "split": split,
        **templates,
        "rows": _identity(dataset),
    }
    if options.template_kwargs:
        settings["chat_template_kwargs"] = options.template_kwargs
    return Rows(dataset, raw, numbers, settings)


def _source(suite: "Suite", options: EvaluationOptions) -> tuple[str, str | None, str]:
    """Name, configuration and split of a suite's data: what is given for it, or its own."""
    given = options.data_of(suite.name)
    if given is not None:
        name, config, split = given, options.data_config, options.split or "test"
    elif suite.data is not None:
        name, config, split = suite.data
        split = options.split or split
    else:
        raise UsageError(f"The suite `{suite.name}` has no data of its own: give --data (hub id, folder or file).")
    return name, config, "train" if Path(name).is_file() and split == "test" else split


def _check_rows(dataset: "Dataset", numbers: list[int], suite: "Suite", options: EvaluationOptions) -> None:
    """Refuses rows that no question or reference can be made of: the rows that training would refuse."""
    from ..chat.data_checks import dataset_form
    from ..chat.row_checks import raise_problems, row_problems

    if len(dataset) == 0:
        raise UsageError(f"The data of `{suite.name}` have no rows.")
    columns, is_answered = dataset.column_names, suite.needs_references and options.references_column is None
    if _CONVERSATIONS.isdisjoint(columns) and options.text_field not in columns:
        return  # said by name elsewhere
    if "prompt" in columns:
        form, is_answered = "prompt-completion", is_answered and "completion" in columns
    else:
        form = dataset_form(columns, options.text_field)
    of = f"{len(dataset)} rows of `{suite.name}`"
    raise_problems(
        row_problems(
            dataset, form, of, options.text_field, reads_documents=True, is_answered=is_answered, numbers=numbers
        )
    )


def _check_count(count: int, suite: "Suite") -> None:
    if count < suite.min_prompts:
        raise UsageError(
            f"`{suite.name}` needs at least {suite.min_prompts} prompts, and should have some hundreds; there are {count}."
        )


def _check_references(dataset: "Dataset", numbers: list[int], name: str) -> None:
    from ..chat.row_checks import Problems, batches, raise_problems
    from ..chat.turns import is_list

    problems = Problems(f"{len(dataset)} rows", numbers)
    for start, batch in batches(dataset, [name]):
        problems.begin_batch(start)
        if not is_list(batch[name].type):
            raise UsageError(
                f"--references_column {name} holds {batch[name].type}, no lists of texts. For one reference a row, give "
                f"--completion_template '{{{{ {name} }}}}'."
            )
        bad = [not texts or any(text is None for text in texts) for texts in batch[name].to_pylist()]
        problems.add(bad, f"have no reference, or a null, in `{name}`", "Drop them.")
    raise_problems(problems.messages())


def items(rows: Rows, suite: "Suite", options: EvaluationOptions, tokenizer: "PreTrainedTokenizerBase") -> list[Item]:
    """The prompts of prompt-completion rows for one model's tokenizer."""
    from ..chat.token_checks import doubled_tokens

    made = []
    conversation = is_conversation(suite, options, tokenizer)
    for number, row, raw in zip(rows.numbers, rows.dataset, rows.raw, strict=True):
        if isinstance(row["prompt"], str) and conversation:
            row = as_conversation(row, options.template_kwargs)
        answer = _answer(row, tokenizer)
        references = answer if options.references_column is None else raw[options.references_column]
        ids, response = prompt_and_response(row, tokenizer)
        if options.references_column is not None or not response:
            response = response_ids(tokenizer, str(references[0])) if references else []
        shown = readable(row["prompt"])
        made.append(Item(str(number), ids, shown, [str(text) for text in references], raw, response))
    for message in doubled_tokens((item.ids for item in made), tokenizer):
        logger.warning(message)
    return made


def is_conversation(suite: "Suite", options: EvaluationOptions, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """
    Whether rendered prompts go through the chat template: as asked, else as the suite has it.

    Raises:
        ValueError: if they are to, and the tokenizer has none.
    """
    if options.as_conversation and tokenizer.chat_template is None:
        raise UsageError("--as_conversation: the tokenizer has no chat template.")
    if options.as_conversation is not None:
        return options.as_conversation
    return suite.as_conversation and tokenizer.chat_template is not None


def spread(length: int, wanted: int | None) -> list[int]:
    """`wanted` of `length` places, evenly spread: sorted data (MATH by subject) are not cut at their beginning."""
    if wanted is None or wanted >= length:
        return list(range(length))
    return [place * length // wanted for place in range(wanted)]


def _templates(suite: "Suite", options: EvaluationOptions, columns: Sequence[str]) -> dict[str, str | None]:
    """What was asked; else the suite's own, unless the rows are prompts and completions already."""
    asked = {"prompt_template": options.prompt_template, "completion_template": options.completion_template}
    if suite.prompt_template is not None and not ("prompt" in columns and not any(asked.values())):
        own = {"prompt_template": suite.prompt_template, "completion_template": suite.completion_template}
        asked = {name: asked[name] or own[name] for name in asked}
    if asked["prompt_template"] and not asked["completion_template"] and options.references_column:
        asked["completion_template"] = f"{{{{ {options.references_column}[0] }}}}"
    return asked


def _known_form(suite: "Suite", options: EvaluationOptions, raw: "Dataset") -> "Dataset":
    """Prompts and completions, messages, or documents, as the columns say."""
    columns = raw.column_names
    if "prompt" in columns:
        return raw
    if "messages" in columns:
        return last_turns(raw)
    if options.text_field in columns and suite.takes_text:
        return raw.select_columns([options.text_field]).rename_columns(
            {} if options.text_field == "text" else {options.text_field: "text"}
        )
    kinds = "`prompt` (and `completion`), `messages`" + (f" or `{options.text_field}`" if suite.takes_text else "")
    raise UsageError(
        f"The data of `{suite.name}` have no {kinds} (columns: {', '.join(columns)}). Give --prompt_template and "
        "--completion_template" + (", or name a column of plain text with --text_field." if suite.takes_text else ".")
    )


def _has_references(dataset: "Dataset", options: EvaluationOptions) -> bool:
    return options.references_column is not None or "completion" in dataset.column_names


def _answer(row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    from ..chat.answers import row_answer

    completion = row.get("completion")
    if not completion:
        return []
    return [completion if isinstance(completion, str) else row_answer(row, tokenizer)]


def _identity(dataset: "Dataset") -> str:
    """The identity of the rows asked for: figures over other rows must not be compared."""
    digest = hashlib.blake2b(digest_size=8)
    known = ("prompt", "completion", "text", "tools", "chat_template_kwargs")
    columns = [name for name in known if name in dataset.column_names]
    for row in dataset.select_columns(columns):
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def text_items(
    rows: Rows, suite: "Suite", options: EvaluationOptions, tokenizer: "PreTrainedTokenizerBase", horizon: int
) -> tuple[list[Item], Cuts]:
    """Contexts of plain text as prompts, and the `horizon` true tokens after each as its reference."""
    documents = [tokenizer(text)["input_ids"] for text in rows.dataset["text"]]
    cuts = cut_documents(documents, options.context_length, horizon, options.num_examples or TEXT_EXAMPLES)
    _check_count(len(cuts.contexts), suite)
    made = [
        Item(f"{document}:{start}", context, tokenizer.decode(context), [tokenizer.decode(behind)])
        for (document, start), context, behind in zip(cuts.places, cuts.contexts, cuts.horizons, strict=True)
    ]
    return made, cuts
