"""What the iterative trainers refuse by name, once the model is there to be looked at."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend, parse_flag_from_env

from ..core.errors import UsageError
from ..core.modeling import LMHead
from ..rollouts.vllm.phase import engine_processes
from .config import IterativeSFTConfig


def reject_unsupported(
    model: torch.nn.Module, args: IterativeSFTConfig, accelerator: Accelerator, has_teacher: bool
) -> None:
    """
    Refuses models and settings that branches cannot be trained with.

    Raises:
        ValueError: says what it is and what to do.
    """
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise UsageError(
            "Prompt-learning adapters (prefix or prompt tuning) are not supported: their virtual tokens have no place "
            "in a row of branches. Use LoRA."
        )
    share, processes = engine_processes(args), args.world_size
    if processes % share:
        raise UsageError(f"`vllm_tensor_parallel_size={share}` must divide the {processes} training processes.")
    parallelism = accelerator.parallelism_config
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise UsageError("Context and sequence parallelism are not supported together with branches.")
    _reject_other_engine(args, accelerator)
    if has_teacher:
        reject_compiled(accelerator, "alpha=1")
    _reject_reentrant_checkpointing(model, args, accelerator)
    if accelerator.is_fsdp2 and hasattr(model, "peft_config") and _trains_head(model):
        # accelerate puts the head of a PEFT model into a unit of its own (`_find_final_norm` finds no norm to go with
        # it), so TRL's fused head reads it with `full_tensor`, whose backward gives each process its own rows' gradient.
        raise UsageError(
            "An adapter that trains the LM head (`modules_to_save`) is not supported under FSDP2: the head's gradient would "
            "not be averaged over the processes. Leave the head out, or use DeepSpeed's ZeRO or DDP."
        )


def _reject_other_engine(args: IterativeSFTConfig, accelerator: Accelerator) -> None:
    """accelerate leaves out an engine that it cannot use, without a word: every process would hold a whole model."""
    deepspeed, fsdp = (getattr(accelerator.state, f"{name}_plugin", None) for name in ("deepspeed", "fsdp"))
    if args.deepspeed and deepspeed is None:
        raise UsageError(
            "DeepSpeed was asked for but is not in use: `accelerate launch --cpu` (or ACCELERATE_USE_CPU) leaves it out. "
            "Launch with `accelerate launch --use_deepspeed` and, without a GPU, `use_cpu=True`."
        )
    wants_fsdp = args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")
    if wants_fsdp and args.world_size > 1 and fsdp is None:
        raise UsageError(
            "FSDP was asked for but is not in use: accelerate supports it on GPUs and other accelerators only. Without one, use "
            "DeepSpeed's ZeRO or DDP."
        )
    if fsdp is not None and not accelerator.is_fsdp2:
        raise UsageError(
            "FSDP1 is not supported: rollouts run parts of the model on their own. Use FSDP2: `fsdp_version: 2` in "
            "accelerate's configuration (`fsdp_config={'version': 2}`)."
        )


def _trains_head(model: torch.nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in LMHead(model).projection.parameters())


def reject_compiled(accelerator: Accelerator, without: str) -> None:
    """Refuses soft labels in a compiled model; `without` is the setting that does without them."""
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        raise UsageError(
            "`torch_compile` is not supported together with soft labels: their loss does not run the compiled forward. Set "
            f"it to False (or `{without}`, which uses hard labels alone)."
        )


def _reject_reentrant_checkpointing(model: torch.nn.Module, args: IterativeSFTConfig, accelerator: Accelerator) -> None:
    reentrant = args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
    others = (DistributedType.NO, DistributedType.DEEPSPEED, DistributedType.FSDP)
    # transformers (`_build_accelerator_args`) lets DDP look for unused parameters unless it knows the model's class.
    if (
        reentrant
        and hasattr(model, "peft_config")
        and accelerator.distributed_type not in others
        and args.ddp_find_unused_parameters is not False
    ):
        raise UsageError(
            "Reentrant gradient checkpointing of an adapter's model does not work with DDP's search for unused parameters: set "
            "`ddp_find_unused_parameters=False`, or `gradient_checkpointing_kwargs={'use_reentrant': False}`."
        )
