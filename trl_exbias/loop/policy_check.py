"""Whether the policy's probabilities are computed as the model itself does, found before the first step."""

from typing import TYPE_CHECKING

from ..core.model_check import check_model, check_training_head
from ..core.modeling import inference
from ..rollouts.local.cache_probe import rows_of
from ..rollouts.vllm.policy import check_servable


if TYPE_CHECKING:
    from .iterative import IterativeSFTTrainer


def check_policy(trainer: "IterativeSFTTrainer") -> None:
    """
    Tries the model on a few tokens, once: its logits, the head that computes the loss, the caches of a rollout.

    Called when the trainer is made and when training begins: a model that DeepSpeed or FSDP shards can be read only then.

    Raises:
        ValueError: names the model and what is different about it.
    """
    if trainer._policy_checked or not trainer.rolls_out:
        return
    if trainer.args.rollout_engine == "vllm" and not trainer.is_in_train:
        check_servable(trainer.model)
    is_sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    if is_sharded and not trainer.is_in_train:
        return
    trainer._policy_checked = True
    with trainer.accelerator.autocast():
        check_model(trainer.model)
        check_training_head(trainer.model)
        if trainer.args.rollout_engine == "transformers":
            with inference(trainer.model):
                rows_of(trainer.model, length=1)
