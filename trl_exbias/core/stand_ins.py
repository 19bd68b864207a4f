"""Modules in the place of others for the length of a block: what a forward need not compute, it does not, and no code is copied."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from .modeling import relative_distance


class StandIn(nn.Module):
    """What a model calls in place of a module; whatever else it asks of one (`attention_type`) the module answers."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]):
        super().__init__()
        self.forward = forward
        self._module = (module,)  # in a tuple: not a submodule, whose parameters would be this one's

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"][0], name)


@contextlib.contextmanager
def in_place(owner: nn.Module, forwards: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Puts stand-ins in the place of some of a module's children, and the children back, also on an exception."""
    children = {name: owner.get_submodule(name) for name in forwards}
    try:
        for name, forward in forwards.items():
            setattr(owner, name, StandIn(children[name], forward))
        yield
    finally:
        for name, child in children.items():
            setattr(owner, name, child)


def position_wise_parts(layer: nn.Module, run: Callable[[], object], tolerance: float) -> list[str]:
    """
    The children of a layer that make something of each position by itself (its feed-forward part), found by trying.

    Args:
        run (`Callable`): Runs the layer, on several positions.
        tolerance (`float`): Relative distance up to which two outputs are the same.
    """
    calls: dict[str, list[tuple[tuple, dict, Any]]] = {}

    def record(name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        calls.setdefault(name, []).append((args, kwargs, output))

    # Norms are as quick at all positions.
    children = {n: c for n, c in layer.named_children() if any(p.dim() > 1 for p in c.parameters())}
    handles = [c.register_forward_hook(partial(record, n), with_kwargs=True) for n, c in children.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [n for n, made in calls.items() if all(_is_position_wise(children[n], *call, tolerance) for call in made)]


def _is_position_wise(part: nn.Module, args: tuple, kwargs: dict, output: Any, tolerance: float) -> bool:
    if len(args) != 1 or kwargs or not isinstance(output, torch.Tensor) or output.shape[:-1] != args[0].shape[:-1]:
        return False
    some = torch.zeros(output.shape[:-1], dtype=torch.bool, device=output.device)
    some[..., ::2] = True
    try:
        found = _at(some, part, args[0])
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False  # of a foreign architecture: whatever it raises at fewer positions means the same
    return relative_distance(found[some], output[some]) < tolerance


@contextlib.contextmanager
def only_at(positions: torch.Tensor, layer: nn.Module, parts: list[str]) -> Iterator[None]:
    """
    In the block, parts of a layer run at some positions, and give zeros at the others.

    Args:
        positions (`torch.Tensor` of shape `(B, L)`): True where they run.
        parts (`list[str]`): As [`position_wise_parts`] returns them.
    """
    with in_place(layer, {name: partial(_at, positions, layer.get_submodule(name)) for name in parts}):
        yield


def _at(positions: torch.Tensor, part: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    # As a row of its own: a mixture of experts asks for rows.
    found = part(hidden[positions].unsqueeze(0)).squeeze(0)
    whole = found.new_zeros(*positions.shape, found.size(-1))
    whole[positions] = found
    return whole
