from .engine import RolloutEngine, SamplingOptions
from .transformers import TransformersEngine


__all__ = ["RolloutEngine", "SamplingOptions", "TransformersEngine"]
