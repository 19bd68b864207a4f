"""`exbias measure MODEL… --data DATA`: perplexity, free-running cross-entropy and exposure bias; see `docs/metrics.md`."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ExbiasError, UsageError
from ..settings.parser import Parser
from ..settings.recipe import exit_with


if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..evaluation.report import Measurement


def run(argv: list[str]) -> int:
    """The command."""
    args = _parser().parse_args(argv)
    try:
        return _measure(args)
    except (ExbiasError, OSError) as error:
        return exit_with(error)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="exbias measure", description=__doc__)
    add = parser.add_argument
    add(
        "models",
        nargs="+",
        metavar="MODEL",
        help="hub id, folder, LoRA adapter or run directory; NAME=MODEL to name it",
    )
    add("--data", required=True, help="hub id, folder, or .txt, .json, .jsonl, .csv or .parquet file")
    add("--data_config", help="configuration of a hub data set")
    add("--split", default="test", help="split or slice of one; always `train` for a single file (default: test)")
    add("--text_field", default="text", help="column of plain text (default: text)")
    add("--prompt_template", help="jinja over the columns; with --completion_template for prompt-completion data")
    add("--completion_template", help="jinja over the columns")
    add("--as_conversation", action="store_true", help="render prompts with the chat template")
    add("--chat_template_kwargs", default="", help="arguments of the chat template for all rows, as JSON")
    add("--context_length", type=int, default=128, help="H, tokens of true context of plain text (default: 128)")
    add("--horizon", type=int, default=10, help="T, steps of free running (default: 10)")
    add("--num_samples", type=int, default=4, help="free runs from each start (default: 4)")
    add("--max_starts", type=int, default=256, help="starts, spread evenly over the data (default: 256)")
    add("--teacher", help="model that stands for the truth in the excess error")
    add("--dtype", default="auto", help="type of the weights: auto, float32, bfloat16, float16 (default: auto)")
    add("--device", help="default: an accelerator if there is one")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="write the report as JSON")
    add("--plot", type=Path, help="write the curves over the horizon as a PNG")
    add("--trust_remote_code", action="store_true", help="run code that comes with a model")
    return parser


def _measure(args: argparse.Namespace) -> int:
    import datasets
    import transformers
    from transformers import AutoTokenizer

    from ..evaluation.identity import model_folder
    from ..evaluation.loading import load_model
    from ..evaluation.plot import plot_exposure_bias
    from ..evaluation.report import notes, table
    from ..methods.dad_dagger.teacher import check_tokenizers
    from .memory import keep_freed_memory

    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    named = dict(_named(model) for model in args.models)
    folders = {name: model_folder(model) for name, model in named.items()}
    kwargs = {"trust_remote_code": args.trust_remote_code}
    tokenizers = {name: AutoTokenizer.from_pretrained(folder, **kwargs) for name, folder in folders.items()}
    rows = _rows(args)
    teacher = None
    if args.teacher:
        for tokenizer in tokenizers.values():
            check_tokenizers(tokenizer, AutoTokenizer.from_pretrained(model_folder(args.teacher), **kwargs))
        teacher = load_model(model_folder(args.teacher), args)
    measurements = {}
    for name, folder in folders.items():
        model = load_model(folder, args)
        measurements[name] = measure_model(name, model, tokenizers[name], rows, args, teacher)
        del model
    print("\n" + table(measurements))
    first = next(iter(measurements.values())).exposure_bias
    print(
        f"\nNats per token with 95 % bootstrap intervals over {first.num_starts} starts, {first.num_samples} free runs of "
        f"{len(first.gap)} steps from each.\n\n{notes(teacher is not None)}"
    )
    if args.output:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in ("models",)}
        report = {"settings": settings, "models": {n: m.as_dict() for n, m in measurements.items()}}
        args.output.write_text(json.dumps(report, indent=2), encoding="utf-8")
        print(f"\nReport: {args.output}")
    if args.plot:
        plot_exposure_bias({n: m.exposure_bias for n, m in measurements.items()}, args.plot)
        print(f"Plot: {args.plot}")
    return 0


def measure_model(
    name: str,
    model: "torch.nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    rows: "Dataset",
    args: argparse.Namespace,
    teacher: Any,
) -> "Measurement":
    """One model's measurement, with a progress bar."""
    from tqdm.auto import tqdm

    from ..evaluation import exposure_bias_from, perplexity
    from ..evaluation.report import Measurement

    contexts, horizons, documents, stride = _cut(rows, tokenizer, args)
    with tqdm(total=len(contexts), desc=f"Measuring {name}", unit="start", leave=False, file=sys.stderr) as bar:
        found = exposure_bias_from(
            model,
            contexts,
            horizons,
            args.num_samples,
            args.seed,
            teacher,
            on_progress=lambda starts, tokens: bar.update(starts),
        )
    ppl = perplexity(model, documents, args.context_length, stride) if documents else None
    num_bytes = sum(len(tokenizer.decode(horizon).encode()) for horizon in horizons)
    return Measurement(found, ppl, num_bytes / sum(map(len, horizons)))


def _named(model: str) -> tuple[str, str]:
    name, equals, path = model.partition("=")
    return (name, path) if equals else (Path(model).name or model, model)


def _rows(args: argparse.Namespace) -> "Dataset":
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


def _cut(
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
