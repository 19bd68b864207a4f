"""What free running costs a model, and how well it predicts."""

from .exposure_bias import ExposureBias, exposure_bias, exposure_bias_from
from .perplexity import Perplexity, perplexity


__all__ = ["ExposureBias", "Perplexity", "exposure_bias", "exposure_bias_from", "perplexity"]
