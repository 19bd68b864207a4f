"""What a trainer takes as [`~trl.SFTTrainer`] does: its arguments, by position too, and what a subclass may override."""

import inspect
from typing import Any

from trl import SFTTrainer

from ..core.errors import UsageError, UsageTypeError


_PARAMETERS = list(inspect.signature(SFTTrainer.__init__).parameters)[1:]
_FURTHER = _PARAMETERS[_PARAMETERS.index("processing_class") + 1 :]


def named(trainer: type, positional: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
    """
    The arguments after `processing_class` by their names in TRL's signature, however they were given.

    Raises:
        TypeError: for more arguments than TRL's trainer has, or one given twice.
    """
    if len(positional) > len(_FURTHER):
        raise UsageTypeError(
            f"{trainer.__name__} takes {len(_PARAMETERS)} positional arguments, as SFTTrainer does; "
            f"{len(positional) - len(_FURTHER)} more were given."
        )
    by_position = dict(zip(_FURTHER, positional, strict=False))
    twice = sorted(by_position.keys() & keywords.keys())
    if twice:
        raise UsageTypeError(
            f"{trainer.__name__} got more than one value for {', '.join(f'`{name}`' for name in twice)}."
        )
    return by_position | keywords


def check_loss_override(trainer: type, base: type) -> None:
    """
    Refuses a trainer class that overrides `compute_loss` of `base`: it would be handed a batch of branches, without labels.

    Raises:
        ValueError: names the method to override instead.
    """
    owner = next(cls for cls in trainer.__mro__ if "compute_loss" in vars(cls))
    if owner is not base:
        raise UsageError(
            f"{owner.__name__} overrides `compute_loss`, which is not supported together with branches: a joint batch has no "
            "`labels` and asks for no outputs. Override `score_branches` instead: it is given the branches of a micro-batch, "
            "with the kind and the weight of each label, and returns their loss. (With `num_iterations=0` nothing rolls out, "
            "and `compute_loss` may be overridden.)"
        )


def refuse_given(trainer: type, **given: Any) -> None:
    """
    What cannot be had together with branches.

    Raises:
        ValueError: names the argument that was given.
    """
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"`{name}` is not supported together with branches, which have their own layout and loss. To change the "
                f"loss, subclass {trainer.__name__} and override `score_branches`."
            )
