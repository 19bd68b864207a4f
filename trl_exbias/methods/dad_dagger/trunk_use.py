"""Whether the output of a student's frozen layers is kept: what a run would make of it, and what is in the way."""

from dataclasses import dataclass
from pathlib import Path

from ...core.collating import BranchCollator
from ...core.files import SHARE_OF_DISK, free_bytes
from ...core.frozen_trunk import FrozenTrunk
from ...core.modeling import inference
from ...core.tensor_cache import SHARDS
from ...core.trunk_check import check_trunk
from .config import DaDDaggerConfig


PAD = 0
_GIB = 1 << 30


@dataclass(frozen=True)
class TrunkUse:
    """
    What a run makes of the frozen layers' output.

    Args:
        positions (`int`): That it reads in all, each once.
        reads (`float`): How often it reads a row of the data.
        shared, packed (`bool`): Which layouts it may read them in, as of [`BranchCollator`].
        in_the_way (`str`, *optional*): The setting of the run that needs every layer in every step.
    """

    positions: int
    reads: float
    shared: bool
    packed: bool
    in_the_way: str | None = None


def planned_use(
    args: DaDDaggerConfig, gold_positions: int, rolled_out: int, layout: BranchCollator, has_aux_loss: bool
) -> TrunkUse:
    """
    What a run is going to make of it.

    Args:
        gold_positions (`int`): Tokens of the data's trajectories.
        rolled_out (`int`): Rows that are rolled out in an iteration.
        layout ([`BranchCollator`]): As it has been decided.
        has_aux_loss (`bool`): Whether a mixture of experts is balanced.
    """
    positions = gold_positions + (args.num_iterations - 1) * rolled_out * args.rollout_length
    in_the_way = "the load-balancing loss reads every layer's router" if has_aux_loss else None
    if args.torch_compile:
        in_the_way = "`torch_compile` has compiled all layers as one"
    reads = args.num_iterations * args.num_train_epochs
    return TrunkUse(positions, reads, layout.shared, layout.packed, in_the_way)


def reason_against(trunk: FrozenTrunk, use: TrunkUse, folder: Path) -> str | None:
    """Why the frozen layers' output is not kept in `folder`; `None` where it can be."""
    if use.in_the_way is not None:
        return use.in_the_way
    if use.reads <= 1:
        return "each row is read once"
    return check_trunk(trunk, use.shared, use.packed) or _does_not_fit(trunk, folder, use.positions)


def _does_not_fit(trunk: FrozenTrunk, folder: Path, positions: int) -> str | None:
    with inference(trunk.model):
        (state,) = trunk.read([[PAD]], PAD)
    there = sum(path.stat().st_size for path in folder.glob(SHARDS))
    needed, free = positions * state.nbytes - there, free_bytes(folder)
    if needed <= SHARE_OF_DISK * free:
        return None
    return (
        f"what they compute of {positions:,} tokens takes {needed / _GIB:.1f} GiB of disk, and of the {free / _GIB:.1f} that "
        f"are free in {folder.parent} at most half is used"
    )
