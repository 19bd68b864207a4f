"""The list of what we use of vLLM besides its public interface, and the constants that we have a copy of.

`mixing.py` and `worker.py` import it, in vLLM's own processes; nothing here does. `tests/rollouts/vllm/test_upstream.py` compares
the list with what is installed.
"""

from typing import Literal

from ...core.surfaces import Attributes, Called, Equals, Mentions, Overridden, PassedOn, Surface


#: The oldest and the newest release that the tests were run with; see `docs/install.md`.
OLDEST, NEWEST = "0.31", "0.32"
#: Ranks that the LoRA kernels are compiled for.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
#: The most entries of a request's `logit_bias`, on a GPU.
MAX_EXCLUDED = 1024

_MIXING, _WORKER = "rollouts/vllm/mixing.py", "rollouts/vllm/worker.py"
_V1 = "vllm.v1.sample.logits_processor:LogitsProcessor"
_V2 = "vllm.v1.worker.gpu.sample.logits_processor.interface:LogitsProcessor"
_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"

SURFACES: tuple[Surface, ...] = (
    # The logits processor, for the model runner V1 and for V2, which old releases do not have one of
    Overridden(f"{_V1}.__init__", _MIXING, "vllm_config device is_pin_memory"),
    Overridden(f"{_V1}.is_argmax_invariant", _MIXING),
    Overridden(f"{_V1}.update_state", _MIXING, "batch_update"),
    Overridden(f"{_V1}.apply", _MIXING, "logits"),
    Called(
        "vllm.v1.sample.logits_processor.builtin:process_dict_updates", _MIXING, "req_entries batch_update new_state"
    ),
    Overridden(f"{_V2}.add_request", _MIXING, "req_idx sampling_params", may_be_absent=True),
    Overridden(f"{_V2}.apply_staged_writes", _MIXING, may_be_absent=True),
    Overridden(f"{_V2}.apply", _MIXING, "logits ctx", may_be_absent=True),
    # The scheduler: its path for streaming input
    Overridden(f"{_SCHEDULER}.add_request", _MIXING, "request"),
    Overridden(f"{_SCHEDULER}._handle_stopped_request", _MIXING, "request"),
    Surface(f"{_SCHEDULER}.update_from_output", _MIXING),
    Surface(f"{_SCHEDULER}._update_request_as_session", _MIXING),
    Attributes(_SCHEDULER, _MIXING, "requests"),
    Attributes("vllm.v1.request:Request", _MIXING, "resumable streaming_queue _output_token_ids arrival_time"),
    Called(
        "vllm.v1.request:StreamingUpdate",
        _MIXING,
        "mm_features prompt_token_ids max_tokens arrival_time sampling_params",
    ),
    Attributes("vllm.v1.engine:EngineCoreOutput", _MIXING, "request_id finish_reason stop_reason"),
    # The engine
    Attributes("vllm:LLM", _WORKER, "llm_engine"),
    PassedOn("vllm.v1.engine.llm_engine:LLMEngine.add_request", _WORKER, "request_id prompt params lora_request"),
    Called("vllm.v1.engine.llm_engine:LLMEngine.step", _WORKER),
    Called("vllm.v1.engine.llm_engine:LLMEngine.abort_request", _WORKER, "request_ids"),
    Called("vllm.v1.engine.llm_engine:LLMEngine.has_unfinished_requests", _WORKER),
    Equals("vllm.config.lora:MaxLoRARanks", "rollouts/vllm/policy.py", value=Literal[LORA_RANKS]),
    Mentions(
        "vllm.v1.worker.gpu.sample.logit_bias", "rollouts/vllm/verbs.py", f"MAX_NUM_LOGIT_BIAS_TOKENS = {MAX_EXCLUDED}"
    ),
)
