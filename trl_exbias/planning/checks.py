"""The data, the tokenizer, the teacher and the output directory against each other: the trainers' own checks, without weights."""

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
from ..methods.dad_dagger.checks import check_positions, check_router, find_teacher
from ..methods.dad_dagger.served_connection import TeacherServerError
from ..methods.dad_dagger.served_teacher import ServedTeacher
from ..methods.dad_dagger.several_teachers import check_names
from ..methods.dad_dagger.teacher import Teacher, check_tokenizers, shared_vocab_size
from ..methods.rac_template import CorrectionTemplate
from ..run.run_directory import check_output_dir
from ..settings.findings import Findings
from ..settings.phase_plan import PhasePlan
from .disk import write_problem
from .hub import Hub, NotAtHand
from .lengths import Lengths
from .placement import Placement
from .rows import FirstRows


_AWAY = "is neither a folder here nor in the cache, and the hub does not answer"


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
        findings.warn(subject, f"`{key}: {name}` {_AWAY}: its size, its memory and its vocabulary were not checked.")
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
            f"the tokenizer of `{name}` {_AWAY}: end of text, chat template and lengths in tokens were not checked.",
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
            findings.warn("tokenizer", f"`chat_template_path: {template}` {_AWAY}: the template was not checked.")
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


def check_teachers(
    findings: Findings,
    hub: Hub,
    args: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    student: PretrainedConfig | None,
    rows: Dataset | None,
) -> list[PretrainedConfig]:
    """DaD-DAgger: the teachers are there and speak the student's tokens; returns the configurations of those loaded here."""
    found = None
    with findings.collect("teacher"):
        found = find_teacher(args, None)
    if found is None:
        return []
    with findings.collect("model"):
        check_router(args, student)
    if isinstance(found, ServedTeacher):
        _check_served(findings, found, args, tokenizer)
        return []
    if isinstance(found, Teacher):
        config = _check_loaded(
            findings, hub, args, f"teacher_model_name_or_path: {found.source}", found, tokenizer, student
        )
        return [] if config is None else [config]
    if rows is not None:
        with findings.collect("data"):
            check_names(rows, found.teachers, TRAINING)
    configs = [
        _check_loaded(findings, hub, args, f"teachers: {{{name}: {one.source}}}", one, tokenizer, student)
        for name, one in found.teachers.items()
    ]
    return [config for config in configs if config is not None]


def _check_loaded(
    findings: Findings,
    hub: Hub,
    args: Any,
    setting: str,
    found: Teacher,
    tokenizer: PreTrainedTokenizerBase | None,
    student: PretrainedConfig | None,
) -> PretrainedConfig | None:
    """A teacher that is loaded here, and the setting that names it; returns its configuration."""

    def teacher(name: str, **kwargs: Any) -> Teacher:
        teacher = Teacher(name, {**found.init_kwargs, **kwargs})
        teacher.config  # noqa: B018 - read here, where what is missing is caught
        return teacher

    assert isinstance(found.source, str), "no command takes a loaded one"
    try:
        loaded = hub.read(found.source, teacher)
    except NotAtHand:
        findings.warn("teacher", f"`{setting}` {_AWAY}: tokens and memory were not checked.")
        return None
    except ValueError as error:
        findings.error("teacher", f"`{setting}` cannot be read: {error}")
        return None
    config = loaded.config
    size = config.get_text_config().vocab_size
    with findings.collect("teacher"):
        if tokenizer is not None:
            check_tokenizers(tokenizer, loaded.tokenizer())
        if student is not None and tokenizer is not None:
            size = shared_vocab_size(student.get_text_config().vocab_size, size, len(tokenizer))
        if args.teacher_top_k is not None and args.teacher_top_k > size:
            raise UsageError(f"`teacher_top_k={args.teacher_top_k}` is above the {size} tokens of the vocabulary.")
    return config


def _check_served(
    findings: Findings, teacher: ServedTeacher, args: Any, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """The server is there, serves the teacher, speaks the student's tokens and gives as many labels as are asked for."""
    if not teacher.is_there():
        findings.warn(
            "teacher",
            f"`teacher_server_base_url: {args.teacher_server_base_url}` does not answer from here: what it serves was not checked.",
        )
    elif tokenizer is not None:
        try:
            with findings.collect("teacher"):
                teacher.check_student(tokenizer, args.teacher_top_k, patience=0.0)
                check_positions(args, "teacher", teacher.positions)
        except TeacherServerError as error:
            findings.error("teacher", str(error))


def check_trajectories(
    findings: Findings, args: Any, model: PretrainedConfig | None, teachers: Sequence[PretrainedConfig]
) -> None:
    """DaD-DAgger: a trajectory fits the positions of student and teachers."""
    for name, config in (("model", model), *(("teacher", teacher) for teacher in teachers)):
        with findings.collect(name):
            check_positions(args, name, positions_of(config))


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
