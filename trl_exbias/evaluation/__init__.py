"""What free running costs a model, and how well it predicts."""

from .callback import ExposureBiasCallback
from .exposure_bias import ExposureBias, exposure_bias, exposure_bias_from
from .perplexity import Perplexity, perplexity


__all__ = [
    "ExposureBias",
    "ExposureBiasCallback",
    "Perplexity",
    "exposure_bias",
    "exposure_bias_from",
    "perplexity",
]
