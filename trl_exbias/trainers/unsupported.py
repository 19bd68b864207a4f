"""What the iterative trainers refuse by name, once the model is there to be looked at."""

from typing import TYPE_CHECKING

from .vllm_phase import engine_processes


if TYPE_CHECKING:
    from .iterative import IterativeSFTTrainer


def reject_unsupported(trainer: "IterativeSFTTrainer") -> None:
    """
    Refuses models and settings that branches cannot be trained with.

    Raises:
        ValueError: says what it is and what to do.
    """
    if trainer._is_vlm:
        raise ValueError("Vision-language models are not supported: pass the tokenizer and the language model alone.")
    if getattr(getattr(trainer.model, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError(
            "Prompt-learning adapters (prefix or prompt tuning) are not supported: their virtual tokens have no place "
            "in a row of branches. Use LoRA."
        )
    share, processes = engine_processes(trainer.args), trainer.args.world_size
    if processes % share:
        raise ValueError(f"`vllm_tensor_parallel_size={share}` must divide the {processes} training processes.")
    parallelism = trainer.accelerator.parallelism_config
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise ValueError("Context and sequence parallelism are not supported together with branches.")
