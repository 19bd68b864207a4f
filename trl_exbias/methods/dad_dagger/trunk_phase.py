"""Works out once what a student's frozen lower layers make of the tokens that it is trained on, and keeps it on disk."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ...core.batching import run_in_batches
from ...core.frozen_trunk import FrozenTrunk, find_trunk
from ...core.joint_dataset import JointDataset, segment_key, segments
from ...core.modeling import inference
from ...core.tensor_cache import TensorCache
from .filling import Filler
from .pieces import Piece, Pieces
from .trunk_use import PAD, TrunkUse, reason_against


logger = logging.getLogger(__name__)


class TrunkPhase:
    """
    The output of a student's frozen layers: decided once whether it is kept, then kept of all that training reads.

    Args:
        model (`nn.Module`): The student.
        autocast (`Callable`): Returns the context manager that training computes in.
        batch_tokens (`int`): Tokens that are read at once.
        folder (`Path`): Where it is kept, each trunk's in a folder of its own.
        log (`Callable`): Takes metrics.
        filler ([`Filler`]): Shares the work.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        autocast: Callable[[], contextlib.AbstractContextManager],
        batch_tokens: int,
        folder: Path,
        log: Callable[[dict[str, float]], None],
        filler: Filler,
    ):
        self.model, self.autocast, self.batch_tokens, self.folder = model, autocast, batch_tokens, folder
        self.log, self.filler = log, filler
        self._is_decided = False
        self._trunk: FrozenTrunk | None = None
        self._cache: TensorCache | None = None

    def run(self, data: JointDataset, use: TrunkUse) -> TensorCache | None:
        """The cache, once it has all that is read of `data`; `None` where every step computes the frozen layers."""
        started = time.perf_counter()
        if not self._is_decided:
            self._is_decided = True
            self._decide(use)
        if self._cache is None:
            return None
        missing = self.filler.missing(self._cache, data, _SEGMENTS)
        self.filler.fill(self._cache, data, _SEGMENTS, missing, self._read)
        seconds = time.perf_counter() - started
        self.log({"trunk/computed": len(missing.places), **missing.metrics("trunk"), "seconds/trunk": seconds})
        return self._cache

    def known(self, inputs: dict[str, Any]) -> contextlib.AbstractContextManager[None]:
        """
        In the block, a forward of a batch begins after the frozen layers.

        Args:
            inputs (`dict`): The batch; what is there for this alone is taken out. Without it, nothing happens.
        """
        states, places = inputs.pop("trunk_states", None), inputs.pop("state_ids", None)
        if states is None or self._trunk is None:
            return contextlib.nullcontext()
        return self._trunk.known(states[places], inputs["shift_labels"] != -100)

    def _decide(self, use: TrunkUse) -> None:
        trunk = find_trunk(self.model)
        if trunk is None:
            logger.debug("No layer is frozen below the first one that is trained: `cache_trunk` has no effect.")
            return
        with self.autocast():
            folder = self.folder / trunk.fingerprint()[:16]
            reason = reason_against(trunk, use, folder)
        if self.filler.processes().any(reason is not None):
            reason = reason or "another process cannot keep what they compute"
            logger.warning(f"The frozen layers are computed in every step: {reason}. The loss is the same.")
            return
        logger.info(f"What the {trunk.depth} frozen layers of {len(trunk.layers)} compute is kept in {folder}.")
        self._trunk, self._cache = trunk, TensorCache(folder, "hidden states")

    def _read(
        self, contents: list[tuple[list[int], int]], done: Callable[[int], object]
    ) -> list[dict[str, torch.Tensor]]:
        trunk = self._trunk
        assert trunk is not None
        entries: list[dict[str, torch.Tensor]] = [{} for _ in contents]

        def run(batch: list[int]) -> None:
            for i, states in zip(batch, trunk.read([contents[i][0] for i in batch], PAD), strict=True):
                # A copy: a part would keep the whole batch alive.
                entries[i] = {"states": states[contents[i][1] :].to("cpu", copy=True)}
            done(len(batch))

        with inference(self.model), self.autocast():
            run_in_batches(run, [len(tokens) for tokens, _ in contents], self.batch_tokens)
        return entries


def _pieces(row: dict[str, Any]) -> Iterator[Piece]:
    for tokens, begin in segments(row):
        yield Piece(segment_key(tokens, begin), (tokens, begin), len(tokens), len(tokens) - begin)


_SEGMENTS = Pieces(_pieces, "hidden states of the frozen layers")
