"""The teachers of a run against its student, without weights: DaD-DAgger's own checks, and what a server answers."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ..chat.data_checks import TRAINING
from ..core.errors import UsageError
from ..core.modeling import positions_of
from ..methods.dad_dagger.checks import check_positions, check_router
from ..methods.dad_dagger.choosing import find_teacher
from ..methods.dad_dagger.matching import check_tokenizers, shared_vocab_size
from ..methods.dad_dagger.served_connection import TeacherServerError
from ..methods.dad_dagger.served_teacher import ServedTeacher
from ..methods.dad_dagger.several_teachers import check_names
from ..methods.dad_dagger.teacher import Teacher
from ..settings.findings import Findings
from .hub import AWAY, Hub, NotAtHand


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
        findings.warn("teacher", f"`{setting}` {AWAY}: tokens and memory were not checked.")
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
