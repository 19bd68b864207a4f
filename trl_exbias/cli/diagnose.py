"""`exbias diagnose MODEL --data DATA`: which method would help, before any training; see `docs/which_method.md`."""

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ExbiasError, UsageError
from ..settings.parser import Parser
from ..settings.recipe import exit_with
from .measured_rows import add_data_options, add_model_options, cut, rows_of


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..evaluation.diagnosis import Diagnosis

_DESCRIPTION = """\
After a token that differs from gold, is gold still the right next token? Draws a part of each held-out response from the model, and
asks a judge how probable gold's next tokens are then: a teacher, or the model itself, shown the reference as RAC shows it. Says
which method that speaks for. Nothing is trained."""


def run(argv: list[str]) -> int:
    """The command."""
    args = _parser().parse_args(argv)
    try:
        return _diagnose(args)
    except (ExbiasError, OSError) as error:
        return exit_with(error)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="exbias diagnose", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="hub id, folder, LoRA adapter or run directory: what would be trained")
    add("--teacher", help="judge of the same tokenizer (default: MODEL itself, shown the reference)")
    add(
        "--correction_template",
        default="qa",
        help="how the reference is shown: qa, summarization, a .jinja file, or a template itself (default: qa)",
    )
    add_data_options(parser)
    add("--horizon", type=int, default=64, help="tokens of each response that are looked at (default: 64)")
    add("--max_starts", type=int, default=256, help="rows, or starts in plain text (default: 256)")
    add("--share", type=float, default=0.5, help="of the tokens, drawn from the model (default: 0.5)")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="write the diagnosis as JSON")
    add_model_options(parser)
    return parser


def _diagnose(args: argparse.Namespace) -> int:
    import datasets
    import transformers
    from transformers import AutoTokenizer

    from ..evaluation.diagnosis_report import explanation
    from ..evaluation.identity import model_folder
    from ..methods.dad_dagger.matching import check_tokenizers
    from ..methods.rac_template import CorrectionTemplate
    from .memory import keep_freed_memory

    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    if not 0 < args.share <= 1:
        raise UsageError(f"--share must be above 0 and at most 1, got {args.share}.")
    template = CorrectionTemplate(args.correction_template)
    kwargs = {"trust_remote_code": args.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(model_folder(args.model), **kwargs)
    if args.teacher:
        check_tokenizers(tokenizer, AutoTokenizer.from_pretrained(model_folder(args.teacher), **kwargs))
    rows = rows_of(args)
    prompts, responses, documents, _ = cut(rows, tokenizer, args)
    if args.teacher:
        shown = prompts
    elif documents is not None:
        raise UsageError("Plain text has no reference to show: give a --teacher.")
    else:
        shown = _shown(rows, template, tokenizer, len(prompts))
    found = _found(args, prompts, responses, shown)
    judge = f"the teacher ({args.teacher})" if args.teacher else "the model, shown the reference,"
    text = explanation(found, judge, shows_reference=not args.teacher)
    print(f"\nGold after a token that differs: {found.verdict}\n\n{textwrap.fill(text, 120)}")
    if args.output:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
        record = {**found.as_dict(), "explanation": text, "settings": settings}
        args.output.write_text(json.dumps(record, indent=2), encoding="utf-8")
        print(f"\nReport: {args.output}")
    return 0


def _shown(rows: "Dataset", template: Any, tokenizer: "PreTrainedTokenizerBase", count: int) -> list[list[int]]:
    """The prompts with the reference in them, as RAC has them."""
    return [template.context_ids(row, tokenizer) for row in rows.select(range(count))]


def _found(
    args: argparse.Namespace, prompts: list[list[int]], responses: list[list[int]], shown: list[list[int]]
) -> "Diagnosis":
    from tqdm.auto import tqdm

    from ..core.modeling import LMHead
    from ..evaluation.diagnosis import diagnose, model_judge
    from ..evaluation.identity import model_folder
    from ..evaluation.loading import load_model

    model = load_model(model_folder(args.model), args)
    judge = load_model(model_folder(args.teacher), args) if args.teacher else model
    # A token that the judge does not have could not be read by it.
    excluded = tuple(range(LMHead(judge).vocab_size, LMHead(model).vocab_size))
    with tqdm(total=len(prompts), desc="Drawing", unit="row", leave=False, file=sys.stderr) as bar:
        return diagnose(
            model,
            prompts,
            responses,
            model_judge(judge, shown),
            args.share,
            args.seed,
            shows_reference=not args.teacher,
            excluded_token_ids=excluded,
            on_progress=lambda rows, tokens: bar.update(rows),
        )
