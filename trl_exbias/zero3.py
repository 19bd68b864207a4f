"""What DeepSpeed's ZeRO-3 asks for where weights are read outside their module's forward, or are not to be partitioned."""

import contextlib
from collections.abc import Iterator

from transformers import TrainingArguments
from transformers.integrations import deepspeed as hf_deepspeed
from trl.trainer.utils import maybe_gather_lm_head_ctx

from .modeling import LMHead


def gathered(*heads: LMHead) -> contextlib.AbstractContextManager:
    """
    LM heads whole, for a loss that reads their weights. Inside the wrapped model's forward only (TRL 1.16's
    `maybe_gather_lm_head_ctx` says why). Does nothing for heads that are whole already.
    """
    parameters = (parameter for head in heads for parameter in (head.projection.weight, head.projection.bias))
    return maybe_gather_lm_head_ctx(*(p for p in parameters if hasattr(p, "ds_status")))


@contextlib.contextmanager
def unpartitioned(args: TrainingArguments) -> Iterator[None]:
    """Models loaded in the block are whole on each process, also while ZeRO-3 partitions what is loaded elsewhere."""
    config = getattr(args, "hf_deepspeed_config", None)
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            hf_deepspeed.set_hf_deepspeed_config(config)
