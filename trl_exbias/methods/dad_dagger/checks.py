"""What student, teacher and trajectories have to agree on, apart from the trainer: `exbias check` asks it without weights."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...chat.data_checks import TRAINING
from ...core.errors import UsageError
from ...core.modeling import LMHead, positions_of
from ...rollouts.vllm.upstream import MAX_EXCLUDED
from .config import DaDDaggerConfig
from .matching import shared_vocab_size
from .served_teacher import ServedTeacher
from .several_teachers import SeveralTeachers, check_names, each_of
from .teacher import Teacher


def check_before_loading(
    args: DaDDaggerConfig,
    model: str | PreTrainedModel,
    teacher: Teacher | ServedTeacher | SeveralTeachers | None,
    tokenizer: PreTrainedTokenizerBase | None,
    train_dataset: Any,
) -> None:
    """Raises a `ValueError` where teacher, student and data do not go together, as far as that shows without weights."""
    if isinstance(teacher, SeveralTeachers):
        check_names(train_dataset, teacher.teachers, TRAINING)
    if teacher is not None and tokenizer is not None:
        teacher.check_student(tokenizer, args.teacher_top_k)
    config = config_of(model, args)
    check_positions(args, "model", positions_of(config))
    if teacher is not None:
        check_router(args, config)
        check_positions(args, "teacher", teacher.positions)


def vocab_shared_with(teacher: Teacher | ServedTeacher | SeveralTeachers, student_size: int, num_tokens: int) -> int:
    """How many logits student and teachers share; see [`shared_vocab_size`]."""
    for each in each_of(teacher):
        if isinstance(each, ServedTeacher):
            # How many logits it has is not known; the tokens that it was asked about are.
            student_size = min(student_size, num_tokens)
        else:
            student_size = shared_vocab_size(student_size, each.config.get_text_config().vocab_size, num_tokens)
    return student_size


def check_router(args: DaDDaggerConfig, config: PretrainedConfig | None) -> None:
    """Raises a `ValueError` where a mixture of experts would be trained on soft labels and balanced at once."""
    text = None if config is None else config.get_text_config()
    coefficient = args.router_aux_loss_coef
    if coefficient is None:
        coefficient = getattr(text, "router_aux_loss_coef", 0.0)
    # As TRL decides it: `output_router_logits` in the model's configuration is overridden.
    if hasattr(text, "output_router_logits") and coefficient != 0:
        raise UsageError(
            "The load-balancing loss of a mixture of experts is not supported together with soft labels: set "
            f"`router_aux_loss_coef=0` (it is {coefficient}), or `alpha=1` for hard labels alone."
        )


def check_positions(args: DaDDaggerConfig, name: str, limit: int | None) -> None:
    """Raises a `ValueError` where a trajectory is longer than the `limit` positions of the model called `name`."""
    length = args.context_length + args.rollout_length
    if limit is not None and length > limit:
        raise UsageError(
            f"A trajectory has {length} tokens (`context_length` {args.context_length} + `rollout_length` "
            f"{args.rollout_length}); the {name} has {limit} positions. Lower them."
        )


def check_head(args: DaDDaggerConfig, head: LMHead, shared_vocab: int) -> None:
    """Raises a `ValueError` where the student's LM head and the settings do not go with the tokens it shares with the teacher."""
    top_k, excluded = args.teacher_top_k, head.vocab_size - shared_vocab
    if top_k is not None and top_k > shared_vocab:
        raise UsageError(f"`teacher_top_k={top_k}` is above the {shared_vocab} tokens of the vocabulary.")
    if args.rollout_engine == "vllm" and excluded > MAX_EXCLUDED:
        raise UsageError(
            f"The student has {excluded} logits more than the teacher; vLLM leaves out {MAX_EXCLUDED} tokens at most. Set "
            "`rollout_engine='transformers'`."
        )
    if hasattr(head.projection, "lora_A"):
        raise UsageError(
            "LoRA on the LM head is not supported together with soft labels: leave it out of `target_modules` (or put "
            "it into `modules_to_save`)."
        )


def check_trainable(args: DaDDaggerConfig, model: Any, peft_config: Any) -> None:
    """Raises a `ValueError` where adapters would say otherwise."""
    if args.trainable_modules and (peft_config is not None or hasattr(model, "peft_config")):
        raise UsageError(
            "`trainable_modules` and LoRA exclude each other: an adapter's own settings (`target_modules`, "
            "`layers_to_transform`) say what it trains."
        )


def config_of(model: str | PreTrainedModel, args: DaDDaggerConfig) -> PretrainedConfig | None:
    """Read ahead of the weights; `None` where that takes loading them (an adapter's folder)."""
    if not isinstance(model, str):
        return model.config
    try:
        return AutoConfig.from_pretrained(
            model, revision=(args.model_init_kwargs or {}).get("revision"), trust_remote_code=args.trust_remote_code
        )
    except (OSError, ValueError):
        return None
