from .engine import RolloutEngine, SamplingOptions
from .engine_process import RolloutEngineError
from .split import SplitEngine
from .transformers import TransformersEngine
from .vllm import VLLMEngine
from .vllm_server import VLLMServerEngine


__all__ = [
    "RolloutEngine",
    "RolloutEngineError",
    "SamplingOptions",
    "SplitEngine",
    "TransformersEngine",
    "VLLMEngine",
    "VLLMServerEngine",
]
