"""`exbias measure MODEL… --data DATA`: perplexity, free-running cross-entropy and exposure bias; see `docs/metrics.md`."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ExbiasError
from ..settings.parser import Parser
from ..settings.recipe import exit_with
from .measured_rows import add_data_options, add_model_options, cut, named_model, rows_of


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
    add_data_options(parser)
    add("--horizon", type=int, default=10, help="T, steps of free running (default: 10)")
    add("--num_samples", type=int, default=4, help="free runs from each start (default: 4)")
    add("--max_starts", type=int, default=256, help="starts, spread evenly over the data (default: 256)")
    add("--teacher", help="model that stands for the truth: adds the KL from it on own states")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="write the report as JSON")
    add("--plot", type=Path, help="write the curves over the horizon as a PNG")
    add_model_options(parser)
    return parser


def _measure(args: argparse.Namespace) -> int:
    import datasets
    import transformers
    from transformers import AutoTokenizer

    from ..evaluation.identity import model_folder
    from ..evaluation.loading import load_model
    from ..evaluation.plot import plot_exposure_bias
    from ..evaluation.report import notes, table
    from ..methods.dad_dagger.matching import check_tokenizers
    from .memory import keep_freed_memory

    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    named = dict(named_model(model) for model in args.models)
    folders = {name: model_folder(model) for name, model in named.items()}
    kwargs = {"trust_remote_code": args.trust_remote_code}
    tokenizers = {name: AutoTokenizer.from_pretrained(folder, **kwargs) for name, folder in folders.items()}
    rows = rows_of(args)
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

    contexts, horizons, documents, stride = cut(rows, tokenizer, args)
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
