"""Keeps the processes of a sharded model together: each runs the same modules in the same order, whatever its own rows ask for.

A forward of a model that is sharded over processes (ZeRO-3, FSDP2) is a collective operation: a process that runs one more
than the others waits for them for ever. Rollouts ask for different numbers of forwards on each. So before each forward the
processes agree on whose turn it is, and those with nothing to do run it on a single token.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from torch import nn

from ...core.modeling import LMHead, backbone, base_causal_lm, inference, model_device
from ...core.sharding import in_forward, is_sharded, reshard


@contextlib.contextmanager
def lockstep(
    model: nn.Module, accelerator: Accelerator, sum_over_processes: Callable[[list[int]], list[int]]
) -> Iterator[None]:
    """
    Within the block, forwards of the backbone and of the LM head may be as many as each process likes. Every process must
    enter and leave it. Does nothing where the model is whole on each process.

    Args:
        sum_over_processes (`Callable[[list[int]], list[int]]`):
            Sums numbers elementwise over the processes, and waits for them as long as it takes: one may draw with vLLM for
            hours before its first forward.
    """
    if accelerator.num_processes == 1 or not is_sharded(model):
        yield
        return
    turns = _Turns(model, sum_over_processes)
    # All at once: FSDP2 gathers the root's weights in front of any module's, and for the whole block.
    in_forward(model, lambda: None)
    hooks = [
        # In front of the hooks of DeepSpeed or FSDP2, which gather the module's weights.
        module.register_forward_pre_hook(turns.waiter(turn), prepend=True)
        for turn, module in enumerate(turns.modules)
    ]
    try:
        yield
        with inference(model), accelerator.autocast():
            in_forward(model, turns.follow_until_all_are_done)
    finally:
        for hook in hooks:
            hook.remove()
        reshard(model)


class _Turns:
    def __init__(self, model: nn.Module, sum_over_processes: Callable[[list[int]], list[int]]):
        self.sum_over_processes = sum_over_processes
        self.device = model_device(model)
        head = LMHead(model).projection
        self.modules = (backbone(model), head)
        self.hidden_size = head.in_features
        self.dtype = base_causal_lm(model).dtype
        self._following = False

    def waiter(self, turn: int) -> Callable[[nn.Module, tuple], None]:
        def wait(module: nn.Module, inputs: tuple) -> None:
            if self._following:
                return
            while (chosen := self._agree(turn)) != turn:
                assert chosen is not None  # this process itself asks for one
                self._follow(chosen)

        return wait

    def follow_until_all_are_done(self) -> None:
        while (chosen := self._agree(None)) is not None:
            self._follow(chosen)

    def _agree(self, turn: int | None) -> int | None:
        """The first turn that any process asks for; `None` when all are done."""
        asked = self.sum_over_processes([int(i == turn) for i in range(len(self.modules))])
        return next((i for i, count in enumerate(asked) if count), None)

    def _follow(self, turn: int) -> None:
        """Runs a module for the sake of the others."""
        self._following = True
        try:
            if turn == 0:
                self.modules[0](input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)
            else:
                self.modules[1](torch.zeros(1, self.hidden_size, dtype=self.dtype, device=self.device))
        finally:
            self._following = False
