"""Train language models on their own mistakes: BASH, RAC and DaD-DAgger as drop-in subclasses of TRL's `SFTTrainer`."""

import importlib
from typing import TYPE_CHECKING, Any


# Imported on first use: `exbias --help` and a mistyped recipe must not wait for torch.
_EXPORTS = {
    "BASHConfig": "methods.configs",
    "BASHTrainer": "methods.bash",
    "Branch": "core.branches",
    "DaDDaggerConfig": "methods.dad_dagger.config",
    "DaDDaggerTrainer": "methods.dad_dagger.trainer",
    "Example": "core.data",
    "IterativeSFTConfig": "loop.config",
    "IterativeSFTTrainer": "loop.iterative",
    "RACConfig": "methods.configs",
    "RACTrainer": "methods.rac",
    "SPINConfig": "methods.configs",
    "SPINTrainer": "methods.spin",
    "ScheduledSamplingConfig": "methods.configs",
    "ScheduledSamplingTrainer": "methods.scheduled_sampling",
    "VerifiedAnswersConfig": "methods.configs",
    "VerifiedAnswersTrainer": "methods.verified",
}
__all__ = sorted(_EXPORTS)
__version__ = "0.1.0"

if TYPE_CHECKING:
    from .core.branches import Branch
    from .core.data import Example
    from .loop.config import IterativeSFTConfig
    from .loop.iterative import IterativeSFTTrainer
    from .methods.bash import BASHTrainer
    from .methods.configs import BASHConfig, RACConfig, ScheduledSamplingConfig, SPINConfig, VerifiedAnswersConfig
    from .methods.dad_dagger.config import DaDDaggerConfig
    from .methods.dad_dagger.trainer import DaDDaggerTrainer
    from .methods.rac import RACTrainer
    from .methods.scheduled_sampling import ScheduledSamplingTrainer
    from .methods.spin import SPINTrainer
    from .methods.verified import VerifiedAnswersTrainer


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
