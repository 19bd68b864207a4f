"""A rollout phase with vLLM: the weights on disk, the process, the proof that it serves them, and nothing left behind."""

import contextlib
import gc
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..evaluation.likelihood import label_nll
from ..modeling import base_causal_lm
from ..rollouts.served_policy import write_policy
from ..rollouts.vllm import VLLMEngine, WeightProbe
from .run_directory import SERVED_POLICY, VLLM_LOG


if TYPE_CHECKING:
    from .iterative import IterativeSFTTrainer

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 64
# Nats, mean over the probe. SmolLM2 in float32: 1e-5; half precision keeps 8 bits of every logit.
_TOLERANCE = {torch.float32: 2e-3}
_HALF_TOLERANCE = 0.1
# Of the memory that is free when the phase begins; the rest is for the training model's own labels.
_SHARE_OF_FREE_MEMORY = 0.85


@contextlib.contextmanager
def vllm_engine(trainer: "IterativeSFTTrainer", on_progress: Callable[[int, int], None]) -> Iterator[VLLMEngine | None]:
    """The engine of a rollout phase; `None` on a process whose devices serve another one's."""
    args, accelerator = trainer.args, trainer.accelerator
    folder = Path(args.output_dir) / SERVED_POLICY
    log = Path(args.output_dir) / VLLM_LOG.format(rank=accelerator.process_index)
    dtype = serving_dtype(trainer)
    probe = weight_probe(trainer, dtype)
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    accelerator.wait_for_everyone()
    try:
        policy = write_policy(trainer.model, trainer.model_wrapped, folder, accelerator)
        if accelerator.process_index % args.vllm_tensor_parallel_size:
            yield None
        else:
            options = {
                **({"gpu_memory_utilization": memory_share(args)} if accelerator.device.type != "cpu" else {}),
                "tensor_parallel_size": args.vllm_tensor_parallel_size,
                **policy.options,
                **(args.vllm_init_kwargs or {}),
            }
            with VLLMEngine(
                policy.model,
                policy.adapter,
                dtype=str(dtype).removeprefix("torch."),
                max_model_len=max_model_len(trainer),
                mix_strategy=args.vllm_mix_strategy,
                timeout=args.vllm_timeout,
                log=log,
                devices=_devices(trainer),
                probe=probe,
                on_progress=on_progress,
                **options,
            ) as engine:
                trainer.log_now({"seconds/vllm_start": engine.start_seconds})
                yield engine
        # Others may still be loading from it, to start a process again.
        accelerator.wait_for_everyone()
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)


def serving_dtype(trainer: "IterativeSFTTrainer") -> torch.dtype:
    """What the policy computes in: the mixed precision's type, else the weights' own."""
    if trainer.args.bf16:
        return torch.bfloat16
    if trainer.args.fp16:
        return torch.float16
    return base_causal_lm(trainer.model).dtype


def weight_probe(trainer: "IterativeSFTTrainer", dtype: torch.dtype) -> WeightProbe:
    """The policy's log-probabilities along the first training row. Every process takes part, for sharded policies."""
    tokens = list(trainer.train_dataset[0]["input_ids"][:_PROBE_TOKENS])
    with trainer.accelerator.autocast():
        (nll,) = label_nll(trainer.model, [tokens[:1]], [tokens[1:]], [tokens[1:]], trainer._tokenizer.pad_token_id)
    return WeightProbe(tokens, [-x for x in nll], _TOLERANCE.get(dtype, _HALF_TOLERANCE))


def max_model_len(trainer: "IterativeSFTTrainer") -> int:
    """Tokens of the longest sequence that a phase can ask for, within the model's positions."""
    longest = int(trainer.sequence_lengths.max()) + trainer.sampling_options(0).max_new_tokens
    positions = getattr(base_causal_lm(trainer.model).config.get_text_config(), "max_position_embeddings", None)
    return longest if positions is None else min(longest, positions)


def memory_share(args) -> float:
    """`gpu_memory_utilization`: what was asked for, else most of what training leaves free."""
    if args.vllm_gpu_memory_utilization is not None:
        return args.vllm_gpu_memory_utilization
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return round(_SHARE_OF_FREE_MEMORY * free / total, 3)


def _devices(trainer: "IterativeSFTTrainer") -> list[int] | None:
    if trainer.accelerator.device.type == "cpu" or trainer.accelerator.num_processes == 1:
        return None
    first = trainer.accelerator.local_process_index
    return list(range(first, first + trainer.args.vllm_tensor_parallel_size))
