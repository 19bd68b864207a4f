"""Whose distribution soft corrections are: the rollouts' policy, the model that training began with, or an exponential average."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from ..core.errors import UsageError
from ..core.files import write_atomically
from ..run.rollout_store import RolloutStoreError
from .configs import AVERAGE, BASE
from .dad_dagger.teacher import Teacher


_AVERAGE_FILE = "average.safetensors"


class SelfTeacher:
    """
    The policy, with the weights that label.

    Args:
        kind (`str`): One of `configs.SELF_TEACHERS`.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The policy.
        decay (`float`): What an average keeps of the one before it.
        base ([`Teacher`], *optional*): What training began with; not needed where an adapter can be switched off.

    Raises:
        ValueError: if the base cannot be had again.
    """

    def __init__(self, kind: str, model: Any, decay: float, base: Teacher | None):
        self.kind, self.model, self.decay = kind, model, decay
        self.base = None if hasattr(model, "disable_adapter") else base
        if kind == BASE and not hasattr(model, "disable_adapter") and (base is None or not base.source):
            raise UsageError(
                "`self_teacher='base'` needs the model by its name or folder, or LoRA: a model that was made in memory cannot be "
                "loaded a second time."
            )
        self._average: dict[str, torch.Tensor] = {}
        self._loaded: torch.nn.Module | None = None

    @contextlib.contextmanager
    def ready(self, folder: Path, before: Path | None, writes_files: bool) -> Iterator[None]:
        """
        For the length of a rollout phase, what `reading` needs.

        Args:
            folder (`Path`), before (`Path`, *optional*): Where the average of the iteration is kept, and that of the one before it;
                `None` in the first.
            writes_files (`bool`): Whether this process is the one that keeps it.

        Raises:
            RolloutStoreError: where the average before is gone.
        """
        with contextlib.ExitStack() as stack:
            if self.kind == BASE and self.base is not None:
                self._loaded = stack.enter_context(self.base.loaded())
            elif self.kind == AVERAGE:
                self._average = self._averaged(None if before is None else before / _AVERAGE_FILE)
                if writes_files:
                    write_atomically(folder / _AVERAGE_FILE, save(self._average))
            try:
                yield
            finally:
                self._loaded, self._average = None, {}

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
        """The model that labels, for the length of the block."""
        if self._loaded is not None:
            yield self._loaded
        elif self.kind == BASE:
            with self.model.disable_adapter():
                yield self.model
        elif self.kind == AVERAGE:
            with self._weights_replaced():
                yield self.model
        else:
            yield self.model

    def _averaged(self, before: Path | None) -> dict[str, torch.Tensor]:
        """`decay · the average before + (1 − decay) · the policy`; the first average is the policy itself."""
        now = {name: p.detach().to("cpu", torch.float32, copy=True) for name, p in self._trained()}
        if before is None:
            return now
        if not before.is_file():
            raise RolloutStoreError(
                f"{before} is missing: the average of the iterations before. Restore it from a copy, or start over with "
                "`overwrite_output_dir=True` or another `output_dir`."
            )
        return {name: value.lerp_(now[name], 1 - self.decay) for name, value in load_file(before).items()}

    @contextlib.contextmanager
    def _weights_replaced(self) -> Iterator[None]:
        own = {name: parameter.detach().clone() for name, parameter in self._trained()}
        try:
            self._load(self._average)
            yield
        finally:
            self._load(own)

    @torch.no_grad()
    def _load(self, weights: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._trained():
            parameter.copy_(weights[name])

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad)


def base_teacher(
    model: Any, init_kwargs: dict[str, Any] | None, device: torch.device, loading: Callable[[], Any]
) -> Teacher:
    """The model that training began with, as it was loaded."""
    options = {**(init_kwargs or {}), "dtype": model.dtype}
    return Teacher(model.config.name_or_path, options, device, loading=loading)
