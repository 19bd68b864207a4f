"""Train language models on their own mistakes: BASH, RAC and DaD-DAgger as drop-in subclasses of TRL's `SFTTrainer`."""

import importlib
from typing import TYPE_CHECKING


# Imported on first use: `exbias --help` and a mistyped recipe must not wait for torch.
_EXPORTS = {
    "BASHConfig": "trainers.bash",
    "BASHTrainer": "trainers.bash",
    "Branch": "branches",
    "DaDDaggerConfig": "trainers.dad_dagger_config",
    "DaDDaggerTrainer": "trainers.dad_dagger",
    "Example": "data",
    "IterativeSFTConfig": "trainers.iterative_config",
    "IterativeSFTTrainer": "trainers.iterative",
    "RACConfig": "trainers.rac",
    "RACTrainer": "trainers.rac",
    "SPINConfig": "trainers.spin",
    "SPINTrainer": "trainers.spin",
    "ScheduledSamplingConfig": "trainers.scheduled_sampling",
    "ScheduledSamplingTrainer": "trainers.scheduled_sampling",
}
__all__ = sorted(_EXPORTS)
__version__ = "0.1.0"

if TYPE_CHECKING:
    from .branches import Branch
    from .data import Example
    from .trainers.bash import BASHConfig, BASHTrainer
    from .trainers.dad_dagger import DaDDaggerTrainer
    from .trainers.dad_dagger_config import DaDDaggerConfig
    from .trainers.iterative import IterativeSFTTrainer
    from .trainers.iterative_config import IterativeSFTConfig
    from .trainers.rac import RACConfig, RACTrainer
    from .trainers.scheduled_sampling import ScheduledSamplingConfig, ScheduledSamplingTrainer
    from .trainers.spin import SPINConfig, SPINTrainer


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
