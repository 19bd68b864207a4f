"""The arms of the bench: a trainer and its settings each, started from the same weights and given the same tokens."""

from dataclasses import dataclass, field
from typing import Any

import yaml

from ..core.errors import UsageError
from ..settings.methods import load, methods


@dataclass(frozen=True)
class Arm:
    """
    Args:
        name (`str`): In the report and in file names.
        trainer (`str`): `module:Class`, an [`~trl_exbias.IterativeSFTTrainer`].
        settings (`dict[str, Any]`): Those of its configuration, in addition to those that all arms share.
        has_teacher (`bool`): Whether it is given the task's teacher.
        is_quick (`bool`): Whether it takes part in a quick bench.
    """

    name: str
    trainer: str
    settings: dict[str, Any] = field(default_factory=dict)
    has_teacher: bool = False
    is_quick: bool = False

    def trainer_class(self) -> type[Any]:
        """
        The class.

        Raises:
            ValueError: if there is none.
        """
        return load(self.trainer)


#: What every other arm is compared with: as many tokens of SFT.
BASELINE = "sft"
_DISTILLATION = {"iteration_patience": None, "lr_scheduler_type": "linear", "cache_teacher": True}

ARMS: tuple[Arm, ...] = (
    Arm(BASELINE, "trl_exbias:IterativeSFTTrainer", {"num_iterations": 0}, is_quick=True),
    Arm("bash-0.2", "trl_exbias:BASHTrainer", {"beta": 0.2}, is_quick=True),
    Arm("bash-0.5", "trl_exbias:BASHTrainer", {"beta": 0.5, "num_iterations": 2}, is_quick=True),
    Arm("bash-1", "trl_exbias:BASHTrainer", {"beta": 1.0, "num_iterations": 2}),
    # Whole own responses, at a tenth of gold's weight: chosen among sixteen settings on `fix` (docs/methods/bash.md).
    Arm("bash-1-gold", "trl_exbias:BASHTrainer", {"beta": 1.0, "num_iterations": 2, "rollout_weight": 0.1}),
    Arm("scheduled-sampling-0.5", "trl_exbias:ScheduledSamplingTrainer", {"beta": 0.5}),
    Arm("rac", "trl_exbias:RACTrainer", {"num_iterations": 2}, is_quick=True),
    Arm("spin", "trl_exbias:SPINTrainer", {"sft_weight": 1.0, "num_iterations": 2}),
    Arm("kd", "trl_exbias:DaDDaggerTrainer", {"alpha": 0.0, "num_iterations": 1, **_DISTILLATION}, has_teacher=True),
    Arm("imitkd", "trl_exbias:DaDDaggerTrainer", {"alpha": 0.0, **_DISTILLATION}, has_teacher=True),
    Arm(
        "dad-dagger-0.5",
        "trl_exbias:DaDDaggerTrainer",
        {"alpha": 0.5, **_DISTILLATION},
        has_teacher=True,
        is_quick=True,
    ),
    Arm("dad", "trl_exbias:DaDDaggerTrainer", {"alpha": 1.0, **_DISTILLATION}),
    Arm("bash-0.5-gated", "trl_exbias:BASHTrainer", {"beta": 0.5, "num_iterations": 2, "gate": "relative"}),
    Arm(
        "dad-dagger-0.5-gated",
        "trl_exbias:DaDDaggerTrainer",
        {"alpha": 0.5, "gate": "relative", **_DISTILLATION},
        has_teacher=True,
    ),
    Arm("rac-soft", "trl_exbias:RACTrainer", {"soft_labels": True, "num_iterations": 2}),
    # What is verified is the final state, as it would be the final answer.
    Arm("verified", "trl_exbias:VerifiedAnswersTrainer", {"verifier": r"regex:\S+", "num_iterations": 2}),
)
#: The arms by their names.
BY_NAME = {arm.name: arm for arm in ARMS}


def own_arm(text: str) -> Arm:
    """
    An arm of a user's own: a registered method or `my_module:MyTrainer`, and its settings: `my_module:MyTrainer beta=0.5`.

    Raises:
        ValueError: if it has another form.
    """
    named, *settings = text.split()
    trainer = methods()[named].trainer if named in methods() else named
    if ":" not in trainer or not all("=" in setting for setting in settings):
        raise UsageError(
            f"`{text}` is not a method. Expected `module:Trainer`, with `setting=value` after it if wanted."
        )
    values = {key: yaml.safe_load(value) for key, value in (setting.split("=", 1) for setting in settings)}
    name = "-".join([trainer.split(":")[1], *(setting.replace("=", "-") for setting in settings)])
    return Arm(name, trainer, values)
