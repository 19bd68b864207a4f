"""The data, models and options that `exbias measure` and `exbias diagnose` have in common."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import UsageError


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Which rows, and how they become contexts."""
    add = parser.add_argument
    add("--data", required=True, help="hub id, folder, or .txt, .json, .jsonl, .csv or .parquet file")
    add("--data_config", help="configuration of a hub data set")
    add("--split", default="test", help="split or slice of one; always `train` for a single file (default: test)")
    add("--text_field", default="text", help="column of plain text (default: text)")
    add("--prompt_template", help="jinja over the columns; with --completion_template for prompt-completion data")
    add("--completion_template", help="jinja over the columns")
    add("--as_conversation", action="store_true", help="render prompts with the chat template")
    add("--chat_template_kwargs", default="", help="arguments of the chat template for all rows, as JSON")
    add("--context_length", type=int, default=128, help="H, tokens of true context of plain text (default: 128)")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """How models are loaded."""
    add = parser.add_argument
    add("--dtype", default="auto", help="of the weights: auto, float32, bfloat16, float16 (default: auto)")
    add("--device", help="default: an accelerator where there is one")
    add("--trust_remote_code", action="store_true", help="run code that comes with a model")


def named_model(model: str) -> tuple[str, str]:
    """Name and place of a model: `NAME=MODEL`, or the last part of a path."""
    name, equals, path = model.partition("=")
    return (name, path) if equals else (Path(model).name or model, model)


def rows_of(args: argparse.Namespace) -> "Dataset":
    """The rows: prompts and completions, or plain text."""
    from ..chat.conversations import TEMPLATE_KWARGS, message_columns, normalised, template_kwargs_of
    from ..evaluation.prompted import last_turns
    from ..settings.data_arguments import DataArguments
    from ..settings.datasets import load_rows, render

    split = "train" if Path(args.data).is_file() and args.split == "test" else args.split
    dataset = load_rows(args.data, args.data_config, split, whole_documents=True)
    rendered = render(
        dataset,
        DataArguments(
            prompt_template=args.prompt_template,
            completion_template=args.completion_template,
            as_conversation=args.as_conversation,
        ),
    )
    _check(rendered, args)
    rows = normalised(rendered, template_kwargs_of({TEMPLATE_KWARGS: args.chat_template_kwargs}))
    return last_turns(rows) if message_columns(rows) == ["messages"] else rows


def _check(rows: "Dataset", args: argparse.Namespace) -> None:
    """Refuses the rows that training would refuse."""
    from ..chat.row_checks import raise_problems, row_problems

    columns, form = set(rows.column_names), None
    if columns >= {"prompt", "completion"}:
        rows, form = rows.select(range(min(len(rows), args.max_starts))), "prompt-completion"
    elif columns & {"messages", "conversations"}:
        form = "messages"
    elif args.text_field in columns:
        form = "text"
    if form is not None:
        raise_problems(row_problems(rows, form, f"{len(rows)} rows", args.text_field, reads_documents=True))


def cut(
    rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", args: argparse.Namespace
) -> tuple[list[list[int]], list[list[int]], list[list[int]] | None, int]:
    """Contexts, horizons, and (of plain text) the documents with the stride that spreads the starts over them."""
    from ..evaluation.cuts import cut_documents
    from ..evaluation.prompted import prompt_and_response

    if "prompt" in rows.column_names and "completion" in rows.column_names:
        contexts, horizons = [], []
        for row in rows.select(range(min(len(rows), args.max_starts))):
            prompt, response = prompt_and_response(row, tokenizer)
            contexts.append(prompt)
            horizons.append(response[: args.horizon])
        return contexts, horizons, None, 1
    if args.text_field not in rows.column_names:
        raise UsageError(
            f"The data have no column `{args.text_field}` (columns: {', '.join(rows.column_names)}). Name one with "
            "--text_field, or give --prompt_template and --completion_template."
        )
    documents = [tokenizer(text)["input_ids"] for text in rows[args.text_field]]
    cuts = cut_documents(documents, args.context_length, args.horizon, args.max_starts)
    return cuts.contexts, cuts.horizons, documents, cuts.stride
