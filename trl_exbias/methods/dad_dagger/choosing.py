"""Which teacher a run has, by its settings: one that is loaded, one on a server, several, or none."""

import logging

from transformers import PreTrainedModel

from ...core.errors import UsageError
from .config import DaDDaggerConfig
from .served_teacher import ServedTeacher
from .several_teachers import SeveralTeachers, by_name
from .teacher import Teacher


logger = logging.getLogger(__name__)


def find_teacher(
    args: DaDDaggerConfig, teacher_model: str | PreTrainedModel | None
) -> Teacher | ServedTeacher | SeveralTeachers | None:
    """The run's teacher, not loaded or asked yet; `None` with hard labels alone. Raises `ValueError` if one is missing."""
    source = teacher_model if teacher_model is not None else args.teacher_model_name_or_path
    address = args.teacher_server_base_url
    if args.alpha == 1:
        if source is not None or address is not None or args.teachers:
            logger.warning("`alpha=1` uses hard labels alone: the teacher is not loaded.")
        return None
    if args.teachers:
        if source is not None:
            raise UsageError("`teacher_model` is one teacher, and `teachers` are several. Leave one of them out.")
        return SeveralTeachers(
            {name: Teacher(path, args.teacher_model_init_kwargs) for name, path in by_name(args.teachers).items()}  # type: ignore[arg-type]
        )
    if address is not None:
        if not isinstance(source, str | None):
            raise UsageError(
                "`teacher_model` is a loaded model, and `teacher_server_base_url` the address of another one. Leave one of them out."
            )
        return ServedTeacher(address, source)
    if source is None:
        raise UsageError(
            f"`alpha={args.alpha}` needs a teacher: pass `teacher_model` (or set `teacher_model_name_or_path`, `teachers` "
            "or `teacher_server_base_url`), or set `alpha=1` for hard labels alone (DaD)."
        )
    return Teacher(source, args.teacher_model_init_kwargs)  # type: ignore[arg-type]  # text until TRL has read it
