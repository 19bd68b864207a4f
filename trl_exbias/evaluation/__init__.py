"""What free running costs a model, how well it predicts, and how good is what it writes: see `docs/evaluation.md`."""

import importlib
from typing import TYPE_CHECKING, Any

# Not on first use like the rest: they are called as their modules are, and importing a module would put it in their place.
from .exposure_bias import ExposureBias, exposure_bias, exposure_bias_from
from .perplexity import Perplexity, perplexity


# Imported on first use: a grader must not wait for torch.
_EXPORTS = {
    "EvaluationOptions": "options",
    "ExposureBiasCallback": "callback",
    "Figure": "figures",
    "evaluate": "run",
    "gsm8k_correct": "grading",
    "math_correct": "grading",
    "paired_difference": "figures",
}
__all__ = [
    "EvaluationOptions",
    "ExposureBias",
    "ExposureBiasCallback",
    "Figure",
    "Perplexity",
    "evaluate",
    "exposure_bias",
    "exposure_bias_from",
    "gsm8k_correct",
    "math_correct",
    "paired_difference",
    "perplexity",
]

if TYPE_CHECKING:
    from .callback import ExposureBiasCallback
    from .figures import Figure, paired_difference
    from .grading import gsm8k_correct, math_correct
    from .options import EvaluationOptions
    from .run import evaluate


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
