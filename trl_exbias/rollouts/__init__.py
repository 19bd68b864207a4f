from .engine import RolloutEngine, SamplingOptions
from .local.engine import TransformersEngine
from .split import SplitEngine
from .vllm.engine import VLLMEngine
from .vllm.process import RolloutEngineError
from .vllm.server import VLLMServerEngine


__all__ = [
    "RolloutEngine",
    "RolloutEngineError",
    "SamplingOptions",
    "SplitEngine",
    "TransformersEngine",
    "VLLMEngine",
    "VLLMServerEngine",
]
