"""A rollout phase with vLLM: the weights on disk, the process, the proof that it serves them, and nothing that stays."""

import contextlib
import gc
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from ...core.likelihood import label_nll
from ...core.modeling import base_causal_lm, position_limit
from ...run.processes import Processes
from ...run.run_directory import SERVED_POLICY, VLLM_LOG
from .engine import VLLMEngine
from .policy import ServedPolicy, write_policy
from .probe import WeightProbe
from .server import VLLMServerEngine
from .verbs import VLLMVerbs


if TYPE_CHECKING:
    from ...loop.config import IterativeSFTConfig

_PROBE_TOKENS = 64
# Nats, mean over the probe. SmolLM2 in float32: 1e-5; half precision keeps 8 bits of every logit.
_TOLERANCE = {torch.float32: 2e-3}
_HALF_TOLERANCE = 0.1
# A share of the memory that is free when the phase begins; the rest is for the training model's own labels.
_SHARE_OF_FREE_MEMORY = 0.85


@dataclass(frozen=True)
class PolicyToServe:
    """
    A policy, and what an engine that serves it must be able to take.

    Args:
        model (`torch.nn.Module`), wrapped (`torch.nn.Module`): The training model, and as DeepSpeed or FSDP have wrapped it.
        accelerator ([`~accelerate.Accelerator`]): The run's.
        dtype (`torch.dtype`): What it computes in.
        probe ([`WeightProbe`]): Its log-probabilities along a row, for the engine to prove that it serves these weights.
        max_model_len (`int`): Tokens of the longest sequence that is asked for.
    """

    model: torch.nn.Module
    wrapped: torch.nn.Module
    accelerator: Accelerator
    dtype: torch.dtype
    probe: WeightProbe
    max_model_len: int


@contextlib.contextmanager
def vllm_engine(
    policy: PolicyToServe,
    args: "IterativeSFTConfig",
    processes: Processes,
    on_progress: Callable[[int, int], None],
) -> Iterator[VLLMVerbs | None]:
    """The engine of a rollout phase; `None` on a process whose devices serve another one's."""
    folder, is_main = Path(args.output_dir) / SERVED_POLICY, processes.index == 0
    if is_main:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    processes.wait()
    try:
        served = write_policy(policy.model, policy.wrapped, folder, policy.accelerator)
        processes.wait()
        common = {
            "mix_strategy": args.vllm_mix_strategy,
            "timeout": args.vllm_timeout,
            "probe": policy.probe,
            "on_progress": on_progress,
        }
        with contextlib.ExitStack() as stack:
            engine: VLLMVerbs | None = None
            if args.vllm_server_base_url is not None:
                server = engine = _server(args.vllm_server_base_url, served, policy.accelerator, common)
                # The main process hands the weights over; then the others may ask for them.
                with processes.first_before_others():
                    stack.enter_context(server)
            elif processes.index % engine_processes(args) == 0:
                engine = stack.enter_context(_child(policy, served, args, common))
            yield engine
            # Others may still be at work with the weights that the main process is about to take away: for hours, which the
            # default group would not wait.
            processes.wait()
    finally:
        if is_main:
            shutil.rmtree(folder, ignore_errors=True)


def engine_processes(args: "IterativeSFTConfig") -> int:
    """Training processes that share one engine of their own; a server is everyone's."""
    if args.rollout_engine != "vllm" or args.vllm_server_base_url is not None or args.world_size == 1:
        return 1
    return args.vllm_tensor_parallel_size


def _server(url: str, served: ServedPolicy, accelerator: Accelerator, common: dict[str, Any]) -> VLLMServerEngine:
    # vLLM tells adapters apart by their names, its cache too: never the same one twice, and the same in every process.
    nonce = int(broadcast(torch.tensor(time.time_ns(), device=accelerator.device)))
    return VLLMServerEngine(
        url,
        weights=None if served.adapter is not None else served.model,
        adapter=served.adapter,
        name=f"policy-{nonce:x}",
        loads=accelerator.is_main_process,
        **common,
    )


def _child(
    policy: PolicyToServe, served: ServedPolicy, args: "IterativeSFTConfig", common: dict[str, Any]
) -> VLLMEngine:
    accelerator = policy.accelerator
    on_gpu = accelerator.device.type != "cpu"
    devices = None
    if on_gpu and accelerator.num_processes > 1:
        first = accelerator.local_process_index
        devices = list(range(first, first + args.vllm_tensor_parallel_size))
    options = {
        **({"gpu_memory_utilization": memory_share(args)} if on_gpu else {}),
        "tensor_parallel_size": args.vllm_tensor_parallel_size,
        **served.options,
        **(args.vllm_init_kwargs or {}),  # type: ignore[dict-item]  # text until TRL has read it
    }
    return VLLMEngine(
        served.model,
        served.adapter,
        dtype=str(policy.dtype).removeprefix("torch."),
        max_model_len=policy.max_model_len,
        log=Path(args.output_dir) / VLLM_LOG.format(rank=accelerator.process_index),
        devices=devices,
        **common,
        **options,
    )


def serving_dtype(model: torch.nn.Module, args: "IterativeSFTConfig") -> torch.dtype:
    """What the policy computes in: the mixed precision's type, else the weights' own."""
    if args.bf16:
        return torch.bfloat16
    if args.fp16:
        return torch.float16
    return base_causal_lm(model).dtype


def weight_probe(model: torch.nn.Module, row: list[int], pad_token_id: int, dtype: torch.dtype) -> WeightProbe:
    """
    The policy's log-probabilities along the beginning of a row. Every process takes part, for sharded policies.

    To be called under the training's autocast.
    """
    tokens = list(row[:_PROBE_TOKENS])
    (nll,) = label_nll(model, [tokens[:1]], [tokens[1:]], [tokens[1:]], pad_token_id)
    return WeightProbe(tokens, [-x for x in nll], _TOLERANCE.get(dtype, _HALF_TOLERANCE))


def max_model_len(model: torch.nn.Module, longest: int) -> int:
    """Tokens of the longest sequence that a phase can ask for, within the model's positions."""
    positions = position_limit(model)
    return longest if positions is None else min(longest, positions)


def memory_share(args: "IterativeSFTConfig") -> float:
    """`gpu_memory_utilization`: what was asked for, else most of what training leaves free."""
    if args.vllm_gpu_memory_utilization is not None:
        return args.vllm_gpu_memory_utilization
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return round(_SHARE_OF_FREE_MEMORY * free / total, 3)
