"""What the iterative trainers refuse by name, once the model is there to be looked at."""

from typing import TYPE_CHECKING

from accelerate.utils import DistributedType, DynamoBackend, parse_flag_from_env

from ..core.errors import UsageError
from ..core.modeling import LMHead
from ..rollouts.vllm.phase import engine_processes


if TYPE_CHECKING:
    from .iterative import IterativeSFTTrainer


def reject_unsupported(trainer: "IterativeSFTTrainer") -> None:
    """
    Refuses models and settings that branches cannot be trained with.

    Raises:
        ValueError: says what it is and what to do.
    """
    if getattr(getattr(trainer.model, "active_peft_config", None), "is_prompt_learning", False):
        raise UsageError(
            "Prompt-learning adapters (prefix or prompt tuning) are not supported: their virtual tokens have no place "
            "in a row of branches. Use LoRA."
        )
    share, processes = engine_processes(trainer.args), trainer.args.world_size
    if processes % share:
        raise UsageError(f"`vllm_tensor_parallel_size={share}` must divide the {processes} training processes.")
    parallelism = trainer.accelerator.parallelism_config
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise UsageError("Context and sequence parallelism are not supported together with branches.")
    _reject_other_engine(trainer)
    _reject_compiled(trainer)
    _reject_reentrant_checkpointing(trainer)
    if trainer.accelerator.is_fsdp2 and hasattr(trainer.model, "peft_config") and _trains_head(trainer):
        # accelerate puts the head of a PEFT model into a unit of its own (`_find_final_norm` finds no norm to go with
        # it), so TRL's fused head reads it with `full_tensor`, whose backward gives each process its own rows' gradient.
        raise UsageError(
            "An adapter that trains the LM head (`modules_to_save`) is not supported under FSDP2: the head's gradient would "
            "not be averaged over the processes. Leave the head out, or use DeepSpeed's ZeRO or DDP."
        )


def _reject_other_engine(trainer: "IterativeSFTTrainer") -> None:
    """accelerate leaves out an engine that it cannot use, without a word: every process would hold a whole model."""
    args = trainer.args
    if args.deepspeed and not trainer.is_deepspeed_enabled:
        raise UsageError(
            "DeepSpeed was asked for but is not in use: `accelerate launch --cpu` (or ACCELERATE_USE_CPU) leaves it out. "
            "Launch with `accelerate launch --use_deepspeed` and, without a GPU, `use_cpu=True`."
        )
    wants_fsdp = args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")
    if wants_fsdp and args.world_size > 1 and not trainer.is_fsdp_enabled:
        raise UsageError(
            "FSDP was asked for but is not in use: accelerate has it for GPUs and other accelerators alone. Without one, use "
            "DeepSpeed's ZeRO or DDP."
        )
    if trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2:
        raise UsageError(
            "FSDP1 is not supported: rollouts run parts of the model on their own. Use FSDP2: `fsdp_version: 2` in "
            "accelerate's configuration (`fsdp_config={'version': 2}`)."
        )


def _trains_head(trainer: "IterativeSFTTrainer") -> bool:
    return any(parameter.requires_grad for parameter in LMHead(trainer.model).projection.parameters())


def _reject_compiled(trainer: "IterativeSFTTrainer") -> None:
    if trainer.accelerator.state.dynamo_plugin.backend == DynamoBackend.NO:
        return
    if getattr(trainer, "teacher", None) is not None:
        raise UsageError(
            "`torch_compile` is not supported together with soft labels: their loss does not run the compiled forward. Set "
            "it to False (or `alpha=1`, which uses hard labels alone)."
        )


def _reject_reentrant_checkpointing(trainer: "IterativeSFTTrainer") -> None:
    args = trainer.args
    reentrant = args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
    others = (DistributedType.NO, DistributedType.DEEPSPEED, DistributedType.FSDP)
    # transformers (`_build_accelerator_args`) lets DDP look for unused parameters unless it knows the model's class.
    if (
        reentrant
        and hasattr(trainer.model, "peft_config")
        and trainer.accelerator.distributed_type not in others
        and args.ddp_find_unused_parameters is not False
    ):
        raise UsageError(
            "Reentrant gradient checkpointing of an adapter's model does not go with DDP's search for unused parameters: set "
            "`ddp_find_unused_parameters=False`, or `gradient_checkpointing_kwargs={'use_reentrant': False}`."
        )
