from .engine import RolloutEngine, SamplingOptions
from .local.engine import TransformersEngine
from .split import SplitEngine
from .stop_strings import StopStrings
from .vllm.engine import VLLMEngine
from .vllm.process import RolloutEngineError
from .vllm.server import VLLMServerEngine


__all__ = [
    "RolloutEngine",
    "RolloutEngineError",
    "SamplingOptions",
    "SplitEngine",
    "StopStrings",
    "TransformersEngine",
    "VLLMEngine",
    "VLLMServerEngine",
]
