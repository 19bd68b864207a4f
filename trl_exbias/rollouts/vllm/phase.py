"""A rollout phase with vLLM: the weights on disk, the process, the proof that it serves them, and nothing left behind."""

import contextlib
import gc
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast

from ...core.likelihood import label_nll
from ...core.modeling import base_causal_lm, position_limit
from ...run.run_directory import SERVED_POLICY, VLLM_LOG
from .engine import VLLMEngine
from .policy import ServedPolicy, write_policy
from .probe import WeightProbe
from .server import VLLMServerEngine
from .verbs import VLLMVerbs


if TYPE_CHECKING:
    from ...loop.config import IterativeSFTConfig
    from ...loop.iterative import IterativeSFTTrainer

_PROBE_TOKENS = 64
# Nats, mean over the probe. SmolLM2 in float32: 1e-5; half precision keeps 8 bits of every logit.
_TOLERANCE = {torch.float32: 2e-3}
_HALF_TOLERANCE = 0.1
# Of the memory that is free when the phase begins; the rest is for the training model's own labels.
_SHARE_OF_FREE_MEMORY = 0.85


@contextlib.contextmanager
def vllm_engine(trainer: "IterativeSFTTrainer", on_progress: Callable[[int, int], None]) -> Iterator[VLLMVerbs | None]:
    """The engine of a rollout phase; `None` on a process whose devices serve another one's."""
    args, accelerator = trainer.args, trainer.accelerator
    folder = Path(args.output_dir) / SERVED_POLICY
    dtype = serving_dtype(trainer)
    probe = weight_probe(trainer, dtype)
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    trainer.processes.wait()
    try:
        policy = write_policy(trainer.model, trainer.model_wrapped, folder, accelerator)
        trainer.processes.wait()
        common = {
            "mix_strategy": args.vllm_mix_strategy,
            "timeout": args.vllm_timeout,
            "probe": probe,
            "on_progress": on_progress,
        }
        with contextlib.ExitStack() as stack:
            engine = None
            if args.vllm_server_base_url is not None:
                engine = _server(trainer, policy, common)
                # The main process hands the weights over; then the others may ask for them.
                with trainer.processes.first_before_others():
                    stack.enter_context(engine)
            elif accelerator.process_index % engine_processes(args) == 0:
                engine = stack.enter_context(_child(trainer, policy, dtype, common))
            if accelerator.is_main_process:
                trainer.log_now({"seconds/vllm_start": engine.start_seconds})
            yield engine
            # Others may still be at work with the weights that the main process is about to take away: for hours, which the
            # default group would not wait.
            trainer.processes.wait()
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)


def engine_processes(args: "IterativeSFTConfig") -> int:
    """Training processes that share one engine of their own; a server is everyone's."""
    if args.rollout_engine != "vllm" or args.vllm_server_base_url is not None or args.world_size == 1:
        return 1
    return args.vllm_tensor_parallel_size


def _server(trainer: "IterativeSFTTrainer", policy: ServedPolicy, common: dict[str, Any]) -> VLLMServerEngine:
    # vLLM tells adapters apart by their names, its cache too: never the same one twice, and the same in every process.
    nonce = int(broadcast(torch.tensor(time.time_ns(), device=trainer.accelerator.device)))
    return VLLMServerEngine(
        trainer.args.vllm_server_base_url,
        weights=None if policy.adapter is not None else policy.model,
        adapter=policy.adapter,
        name=f"policy-{nonce:x}",
        loads=trainer.accelerator.is_main_process,
        **common,
    )


def _child(
    trainer: "IterativeSFTTrainer", policy: ServedPolicy, dtype: torch.dtype, common: dict[str, Any]
) -> VLLMEngine:
    args, accelerator = trainer.args, trainer.accelerator
    on_gpu = accelerator.device.type != "cpu"
    devices = None
    if on_gpu and accelerator.num_processes > 1:
        first = accelerator.local_process_index
        devices = list(range(first, first + args.vllm_tensor_parallel_size))
    options = {
        **({"gpu_memory_utilization": memory_share(args)} if on_gpu else {}),
        "tensor_parallel_size": args.vllm_tensor_parallel_size,
        **policy.options,
        **(args.vllm_init_kwargs or {}),
    }
    return VLLMEngine(
        policy.model,
        policy.adapter,
        dtype=str(dtype).removeprefix("torch."),
        max_model_len=max_model_len(trainer),
        log=Path(args.output_dir) / VLLM_LOG.format(rank=accelerator.process_index),
        devices=devices,
        **common,
        **options,
    )


def serving_dtype(trainer: "IterativeSFTTrainer") -> torch.dtype:
    """What the policy computes in: the mixed precision's type, else the weights' own."""
    if trainer.args.bf16:
        return torch.bfloat16
    if trainer.args.fp16:
        return torch.float16
    return base_causal_lm(trainer.model).dtype


def weight_probe(trainer: "IterativeSFTTrainer", dtype: torch.dtype) -> WeightProbe:
    """The policy's log-probabilities along the longest training row. Every process takes part, for sharded policies."""
    row = trainer.train_dataset[int(trainer.sequence_lengths.argmax())]
    tokens = list(row["input_ids"][:_PROBE_TOKENS])
    with trainer.accelerator.autocast():
        (nll,) = label_nll(trainer.model, [tokens[:1]], [tokens[1:]], [tokens[1:]], trainer._tokenizer.pad_token_id)
    return WeightProbe(tokens, [-x for x in nll], _TOLERANCE.get(dtype, _HALF_TOLERANCE))


def max_model_len(trainer: "IterativeSFTTrainer") -> int:
    """Tokens of the longest sequence that a phase can ask for, within the model's positions."""
    longest = int(trainer.sequence_lengths.max()) + trainer.sampling_options(0).max_new_tokens
    positions = position_limit(trainer.model)
    return longest if positions is None else min(longest, positions)


def memory_share(args: "IterativeSFTConfig") -> float:
    """`gpu_memory_utilization`: what was asked for, else most of what training leaves free."""
    if args.vllm_gpu_memory_utilization is not None:
        return args.vllm_gpu_memory_utilization
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return round(_SHARE_OF_FREE_MEMORY * free / total, 3)
