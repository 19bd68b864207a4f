"""The data, the tokenizer and the output directory against each other: the trainers' own checks, without weights."""

from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from datasets import Dataset
from jinja2 import TemplateError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from ..chat.conversations import TEMPLATE_KWARGS, message_columns, normalised, template_kwargs_of
from ..chat.data_checks import TRAINING, check_rows, check_tokenizer, dataset_form, rows_of
from ..chat.prompts import response_after_prompt, token_ids
from ..chat.row_checks import raise_problems
from ..chat.stop_tokens import stop_token_ids
from ..chat.token_checks import doubled_tokens, embedding_problems
from ..core.errors import UsageError
from ..core.modeling import positions_of
from ..methods.rac_template import CorrectionTemplate
from ..run.run_directory import check_output_dir
from ..settings.findings import Findings
from ..settings.phase_plan import PhasePlan
from .disk import write_problem
from .hub import AWAY, Hub, NotAtHand
from .lengths import Lengths
from .placement import Placement
from .rows import FirstRows


def check_output(findings: Findings, args: Any) -> None:
    """The output directory can be written to and holds no other run."""
    if args.output_dir is None:
        findings.error("output", "`output_dir` is missing: where checkpoints, rollouts and the model go.")
        return
    resume = args.resume_from_checkpoint
    resumes = resume.lower() != "false" if isinstance(resume, str) else bool(resume)
    with findings.collect("output"):
        check_output_dir(args.output_dir, resumes, args.overwrite_output_dir)
    problem = write_problem(args.output_dir)
    if problem is not None:
        findings.error("output", problem)
    if resumes and isinstance(resume, str) and resume.lower() != "true" and not Path(resume).is_dir():
        findings.error("output", f"`resume_from_checkpoint: {resume}` is not a folder.")


def read_config(
    findings: Findings, hub: Hub, subject: str, key: str, name: str, **kwargs: Any
) -> PretrainedConfig | None:
    """A model's configuration; `None`, with a finding, where there is none to be had."""
    try:
        return hub.read(name, AutoConfig.from_pretrained, **kwargs)
    except NotAtHand:
        findings.warn(subject, f"`{key}: {name}` {AWAY}: its size, its memory and its vocabulary were not checked.")
    except ValueError as error:
        findings.error(subject, f"`{key}: {name}` cannot be read: {error}")
    return None


def read_tokenizer(findings: Findings, hub: Hub, name: str, args: Any, **kwargs: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer with the chat template that the run will use; `None`, with a finding, where there is none to be had."""
    try:
        tokenizer = hub.read(name, AutoTokenizer.from_pretrained, **kwargs)
    except NotAtHand:
        findings.warn(
            "tokenizer",
            f"the tokenizer of `{name}` {AWAY}: end of text, chat template and lengths in tokens were not checked.",
        )
        return None
    except ValueError as error:
        findings.error("tokenizer", f"the tokenizer of `{name}` cannot be read: {error}")
        return None
    template = args.chat_template_path
    if template is not None and Path(template).is_file() and template.endswith((".jinja", ".j2")):
        tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
    elif template is not None:
        try:
            tokenizer.chat_template = hub.read(template, AutoTokenizer.from_pretrained).chat_template
        except NotAtHand:
            findings.warn("tokenizer", f"`chat_template_path: {template}` {AWAY}: the template was not checked.")
            return None
        except ValueError as error:
            findings.error(
                "tokenizer",
                f"`chat_template_path: {template}` is neither a .jinja file nor a model whose template could be used: "
                f"{error}",
            )
            return None
        if tokenizer.chat_template is None:
            findings.error("tokenizer", f"`chat_template_path: {template}` names a model without a chat template.")
            return None
    if args.eos_token is not None and args.eos_token in tokenizer.get_vocab():
        tokenizer.eos_token = args.eos_token
    return tokenizer


def check_data(
    findings: Findings, found: FirstRows, name: str, args: Any, plan: PhasePlan, config: PretrainedConfig | None
) -> str | None:
    """
    The first rows have a form that the method can train on, and nothing is wrong with any of them; returns the form.

    Args:
        name (`str`): What a message calls their data set; see [`~trl_exbias.chat.data_checks.named_parts`].
    """
    rows, size = found.rows, None if config is None else config.get_text_config().vocab_size
    with findings.collect("data"):
        if args.is_plain_sft:
            # What there is to look at in TRL's own training: pictures are not counted in tokens.
            has_pictures = {"image", "images"} & {*rows.column_names}
            return None if has_pictures else dataset_form(rows.column_names, args.dataset_text_field, name=name)
        form = dataset_form(rows.column_names, args.dataset_text_field, name=name)
        if name == TRAINING and form not in plan.dataset_forms:
            raise UsageError(
                f"{plan.title} needs data in the form {' or '.join(plan.dataset_forms)}; these are of the "
                f"form {form} (columns: {', '.join(rows.column_names)})."
            )
        reads_documents = plan.reads_documents
        raise_problems(
            check_rows(
                rows, name, args.dataset_text_field, False, size, reads_documents, _rows_of(rows, name, found.are_all)
            )
        )
        return form
    return None


def _rows_of(rows: Dataset, name: str, are_all: bool) -> str:
    of = rows_of(name, len(rows))
    return of if are_all else f"the first {of}"


def check_rows_and_tokenizer(
    findings: Findings, rows: Dataset, form: str, tokenizer: PreTrainedTokenizerBase, config: Any, args: Any
) -> bool:
    """The tokenizer can end a response and render the data's conversations; returns whether rows can be tokenised."""
    before = len(findings.errors)
    with findings.collect("tokenizer"):
        size = None if config is None else config.get_text_config().vocab_size
        check_tokenizer(tokenizer, args, rows, form, num_embeddings=size)
        rows = normalised(rows, template_kwargs_of({TEMPLATE_KWARGS: args.chat_template_kwargs}))
        stops = stop_token_ids(tokenizer, config, None)
        row = rows[0]
        if form in ("messages", "prompt-completion") and not isinstance(row.get("prompt", []), str):
            try:
                _check_rendering(findings, row, form, tokenizer, stops)
            except TemplateError as error:
                findings.error("tokenizer", f"the chat template does not take the data's conversations: {error}")
        if len(findings.errors) != before:
            return False
        tokens = Dataset.from_dict(
            {"input_ids": [token_ids(row, form, tokenizer, args.dataset_text_field) for row in rows]}
        )
        for message in doubled_tokens(map(itemgetter("input_ids"), tokens), tokenizer, form == "tokenized"):
            findings.warn("tokenizer", message)
        if size is not None and len(tokenizer) > size:
            raise_problems(embedding_problems(tokens, f"the first {rows_of(TRAINING, len(rows))}", size, tokenizer))
            findings.warn(
                "tokenizer",
                f"the tokenizer has {len(tokenizer)} tokens, the model embeddings for {size}: a token beyond them would "
                "stop the run.",
            )
    return len(findings.errors) == before


def _check_rendering(
    findings: Findings, row: dict[str, Any], form: str, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]
) -> None:
    _, response = response_after_prompt(row, form, tokenizer)
    if not set(response) & set(stops):
        findings.warn(
            "tokenizer",
            "the chat template ends an assistant turn with none of the tokens that end a response "
            f"({', '.join(tokenizer.convert_ids_to_tokens(list(stops)))}): the model would not learn to stop. Set "
            "`eos_token` to the template's end of turn.",
        )


def check_lengths(findings: Findings, lengths: Lengths, args: Any, form: str, config: Any, are_all: bool) -> None:
    """`max_length` leaves a response to learn, and rows fit the model's positions."""
    if not lengths.rows:
        need = args.context_length + args.rollout_length
        longest = max((context + response for context, response in lengths.whole), default=0)
        say = findings.error if are_all else findings.warn
        say(
            "data",
            f"none of the first {len(lengths.whole)} documents has the {need} tokens of a trajectory (`context_length` "
            f"{args.context_length} + `rollout_length` {args.rollout_length}); the longest has {longest}. Lower them, or join "
            "rows (`document_column`).",
        )
        return
    lost = [i for i, (context, _) in enumerate(lengths.whole) if args.max_length and context >= args.max_length]
    if lost and form == "prompt-completion":
        findings.error(
            "data",
            f"{len(lost)} of the first {len(lengths.whole)} rows have no response token within `max_length={args.max_length}`: "
            "their prompt fills it. Raise `max_length`, or drop such rows before training.",
        )
    positions = positions_of(config)
    longest = max(context + response for context, response in lengths.rows)
    if positions is not None and longest > positions:
        findings.error(
            "data", f"rows have up to {longest} tokens; the model has {positions} positions. Lower `max_length`."
        )


def check_correction(
    findings: Findings, rows: Dataset, source: str, args: Any, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """RAC, and BASH's gate: the template can show the first rows' reference answers."""
    with findings.collect("data"):
        template = CorrectionTemplate(source)
        if not message_columns(rows) and "prompt" not in rows.column_names:
            raise UsageError("a reference can be shown for prompt-completion or conversational data alone.")
        rows = normalised(rows, template_kwargs_of({TEMPLATE_KWARGS: args.chat_template_kwargs}))
        if not message_columns(rows):
            for row in rows:
                template.render_text(row["prompt"], row["completion"])
        elif tokenizer is not None and tokenizer.chat_template is not None:
            template.check(rows, tokenizer)


def check_placement(findings: Findings, args: Any, placement: Placement, uses_peft: bool) -> None:
    """Settings that the placement does not take."""
    sharded = placement.is_zero or placement.sharding == "fsdp"
    evaluates = str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no"
    if args.iteration_patience is not None and evaluates and sharded:
        findings.error(
            "placement",
            "`iteration_patience` is not supported with DeepSpeed or FSDP: the best weights of an iteration could not be put "
            "back into a partitioned model. Set it to None.",
        )
    if args.rollout_engine == "vllm" and args.vllm_server_base_url is None:
        share = args.vllm_tensor_parallel_size
        if placement.num_processes > 1 and placement.num_processes % share:
            findings.error(
                "placement",
                f"`vllm_tensor_parallel_size={share}` must divide the {placement.num_processes} training processes.",
            )
    if getattr(args, "trainable_modules", None) and uses_peft:
        findings.error(
            "values",
            "`trainable_modules` and LoRA exclude each other: an adapter's own settings say what it trains. Leave one out.",
        )
