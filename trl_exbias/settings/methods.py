"""
The registry of methods: what commands, `exbias check`, `exbias compare` and `exbias bench` know of each, without torch.

A method of your own is registered by an entry point of its package,

    [project.entry-points."trl_exbias.methods"]
    halfway = "my_package.halfway:HalfwayTrainer"

or named where it is used, as `my_module:MyTrainer`.
"""

import copy
import importlib
import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ..core.errors import UsageError, did_you_mean
from .phase_plan import PhasePlan


ENTRY_POINTS = "trl_exbias.methods"


@dataclass(frozen=True)
class Method:
    """
    Args:
        name (`str`): Its name as a command, as the folder of its recipes, and in comparison files.
        about (`str`): One line of help.
        trainer (`str`): `module:Class`, an [`~trl_exbias.IterativeSFTTrainer`].
        config (`str`, *optional*): `module:Class`. Default: the trainer's `config_class`.
        plan (`str`, *optional*): `module:Class`, a [`PhasePlan`]. Default: the trainer's `phase_plan`.
        is_baseline (`bool`): Whether it is there to be compared with.
        is_own (`bool`): Whether it is a user's own.
    """

    name: str
    about: str
    trainer: str
    config: str | None = None
    plan: str | None = None
    is_baseline: bool = False
    is_own: bool = False

    @property
    def command(self) -> list[str]:
        """The words after `exbias` that train with it."""
        return ["train", "--method", self.name] if self.is_own else [self.name]

    def trainer_class(self) -> type[Any]:
        return load(self.trainer)

    def config_class(self) -> type[Any]:
        return self.trainer_class().config_class if self.config is None else load(self.config)

    def phase_plan(self) -> PhasePlan:
        if self.plan is not None:
            return load(self.plan)()
        trainer = self.trainer_class()
        plan = copy.copy(trainer.phase_plan)
        plan.title, plan.dataset_forms = trainer._name, trainer.dataset_forms
        plan.reads_documents = trainer.reads_documents
        return plan


_OURS = (
    Method(
        "bash",
        "Batch-Scheduled Sampling: train on gold and on responses mixed with the policy's own tokens",
        "trl_exbias.methods.bash:BASHTrainer",
        "trl_exbias.methods.configs:BASHConfig",
        "trl_exbias.methods.plans:MixingPlan",
    ),
    Method(
        "rac",
        "Reference-Answer-based Correction: train on gold and on the policy's corrections of its own answers",
        "trl_exbias.methods.rac:RACTrainer",
        "trl_exbias.methods.configs:RACConfig",
        "trl_exbias.methods.plans:RACPlan",
    ),
    Method(
        "dad-dagger",
        "DaD-DAgger: distil a student on the data's contexts and on its own, from a teacher and the data",
        "trl_exbias.methods.dad_dagger.trainer:DaDDaggerTrainer",
        "trl_exbias.methods.dad_dagger.config:DaDDaggerConfig",
        "trl_exbias.methods.plans:DaDDaggerPlan",
    ),
    Method(
        "verified",
        "Verified answers (STaR, RFT, SSD): train on gold and on the policy's own answers that a verifier accepts",
        "trl_exbias.methods.verified:VerifiedAnswersTrainer",
        "trl_exbias.methods.configs:VerifiedAnswersConfig",
        "trl_exbias.methods.plans:VerifiedAnswersPlan",
        is_baseline=True,
    ),
    Method(
        "spin",
        "Self-Play Fine-Tuning, a baseline: prefer gold to the policy's own response",
        "trl_exbias.methods.spin:SPINTrainer",
        "trl_exbias.methods.configs:SPINConfig",
        "trl_exbias.methods.plans:SPINPlan",
        is_baseline=True,
    ),
    Method(
        "scheduled-sampling",
        "BASH with its mixing done again at every step, a baseline: slow on purpose",
        "trl_exbias.methods.scheduled_sampling:ScheduledSamplingTrainer",
        "trl_exbias.methods.configs:ScheduledSamplingConfig",
        "trl_exbias.methods.plans:ScheduledSamplingPlan",
        is_baseline=True,
    ),
)


@cache
def methods() -> dict[str, Method]:
    """Every registered method by its name: the package's own, then those of entry points."""
    found = {method.name: method for method in _OURS}
    for point in entry_points(group=ENTRY_POINTS):
        if point.name not in found:
            found[point.name] = Method(point.name, _about(point), point.value, is_own=True)
    return found


def method_named(name: str) -> Method:
    """
    A registered method, or the one that `module:Trainer` names.

    Raises:
        UsageError: if there is none; the message names the nearest.
    """
    if name in methods():
        return methods()[name]
    if ":" in name:
        return Method(name, f"{name}, a method of your own", name, is_own=True)
    raise UsageError(
        f"There is no method `{name}`.{did_you_mean(name, methods())} Registered: {', '.join(methods())}; your own is named "
        "`module:Trainer`."
    )


def load(path: str) -> Any:
    """
    What `module:name` stands for. A module of the user's lies where the command is called.

    Raises:
        UsageError: if there is no such module, or nothing of that name in it.
    """
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        # A module that is missing within the user's own is their module's error, with its traceback.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise UsageError(
            f"`{path}` cannot be loaded: there is no module `{error.name}`. Expected `module:name`, importable from "
            "where the command is called."
        ) from error
    except AttributeError as error:
        raise UsageError(f"`{path}` cannot be loaded: `{module}` has no `{name}`.") from error


def _about(point: EntryPoint) -> str:
    return f"{point.value}, of the package {point.dist.name}" if point.dist is not None else point.value
