"""What soft corrections ask of the model, and of how it is spread."""

from typing import Any

from accelerate import Accelerator

from ..core.errors import UsageError
from ..core.modeling import LMHead
from ..loop.unsupported import reject_compiled
from .configs import AVERAGE, RACConfig


def check_soft_labels(args: RACConfig, model: Any, accelerator: Accelerator, has_aux_loss: bool) -> None:
    """
    Rejects models, and ways to spread them, that soft labels cannot be trained with.

    Raises:
        ValueError: says what it is and what to do.
    """
    reject_compiled(accelerator, "soft_labels=False")
    head, plugin = LMHead(model), accelerator.state.deepspeed_plugin
    if has_aux_loss:
        raise UsageError(
            "The load-balancing loss of a mixture of experts is not supported together with `soft_labels`: set "
            "`router_aux_loss_coef=0`."
        )
    if hasattr(head.projection, "lora_A"):
        raise UsageError(
            "LoRA on the LM head is not supported together with `soft_labels`: leave it out of `target_modules` (or put it "
            "into `modules_to_save`)."
        )
    if args.teacher_top_k is not None and args.teacher_top_k > head.vocab_size:
        raise UsageError(
            f"`teacher_top_k={args.teacher_top_k}` is above the {head.vocab_size} tokens of the vocabulary."
        )
    is_sharded = accelerator.is_fsdp2 or (plugin is not None and plugin.zero_stage == 3)
    if is_sharded and args.self_teacher == AVERAGE:
        raise UsageError(
            "`self_teacher='average'` needs the whole model on each process, and ZeRO-3 and FSDP2 give it a part. Take 'policy' or "
            "'base', or ZeRO-2."
        )
