"""What the processes of a run tell each other between steps: waiting, agreeing, handing files over."""

import contextlib
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator

from ..core.files import write_atomically


# A process may be done with its share of a phase hours before another: the default group would give up after
# minutes. A process that dies is the launcher's to notice.
_PATIENCE = timedelta(days=30)


class Processes:
    """
    The processes of a run on a group of their own, on the CPU, that waits as long as a phase takes.

    Every process must make one, and call each method, together with the others. With one process all of it is free.

    Args:
        accelerator ([`~accelerate.Accelerator`]): The trainer's.
        folder (`Path`): The run directory.

    Attributes:
        share_files (`bool`): Whether all see the same run directory, as on a shared file system. Found out, not configured.
        writes_files (`bool`): Whether this process is the one that writes what is written once for a run directory.
    """

    def __init__(self, accelerator: Accelerator, folder: Path):
        self.index, self.count = accelerator.process_index, accelerator.num_processes
        self._local_main = accelerator.is_local_main_process
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE) if self.count > 1 else None
        self.share_files = self._see_the_same(folder)
        self.writes_files = self.index == 0 if self.share_files else self._local_main

    def wait(self) -> None:
        """Returns when every process is here."""
        if self._group is not None:
            dist.barrier(group=self._group)

    @contextlib.contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Runs the block in the first process, and then in the others."""
        if self.index:
            self.wait()
        yield
        if not self.index:
            self.wait()

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        if self._group is None:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, group=self._group)
        return bool(flags)

    def sum(self, numbers: list[int]) -> list[int]:
        """Elementwise sums over the processes."""
        if self._group is None:
            return numbers
        sums = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(sums, group=self._group)
        return sums.tolist()

    def _see_the_same(self, folder: Path) -> bool:
        """Whether a file that the first process writes there can be seen by all."""
        if self._group is None:
            return True
        # A name that no other run, and no earlier one, has used.
        number = torch.randint(2**62, (1,))
        dist.broadcast(number, src=0, group=self._group)
        probe = Path(folder) / f".shared-{int(number):016x}"
        if self.index == 0:
            probe.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(probe, b"")
        self.wait()
        # Listing the folder makes a network file system look again.
        seen = Path(folder).is_dir() and probe.name in {path.name for path in Path(folder).iterdir()}
        shared = not self.any(not seen)
        if self.index == 0:
            probe.unlink()
        return shared

    def hand_over(self, folder: Path, pattern: str) -> None:
        """
        Gives every node the files that any process has in `folder`, which each has for itself, byte for byte.

        For runs whose nodes share no file system. One file at a time passes through memory.
        """
        mine = {path.name for path in Path(folder).glob(pattern)}
        theirs = [set(json.loads(names)) for names in self._gather(json.dumps(sorted(mine)))]
        for name in sorted(set.union(*theirs)):
            assert Path(name).name == name, "a file's name leads out of the folder"
            holders = [index for index, names in enumerate(theirs) if name in names]
            if len(holders) < self.count:
                self._broadcast_file(Path(folder) / name, holders[0], name in mine)
        self.wait()

    def _gather(self, text: str) -> list[str]:
        """The text of each process, in all of them. (`all_gather_object` would pickle.)"""
        content = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([content.numel()]), group=self._group)
        longest = int(max(sizes))
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.count)]
        padded = torch.nn.functional.pad(content, (0, longest - content.numel()))
        dist.all_gather(parts, padded, group=self._group)
        return [part[: int(size)].numpy().tobytes().decode() for part, size in zip(parts, sizes, strict=True)]

    def _broadcast_file(self, path: Path, source: int, have: bool) -> None:
        content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) if self.index == source else None
        size = torch.tensor([0 if content is None else content.numel()])
        dist.broadcast(size, src=source, group=self._group)
        if content is None:
            content = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(content, src=source, group=self._group)
        # One writer a node.
        if not have and self._local_main:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content.numpy().tobytes())


def longest_first(costs: list[float], shares: int) -> list[list[int]]:
    """
    Deals pieces of work out so that all are done at about the same time: the costliest first, each to whoever has least.

    Args:
        costs (`list[float]`): The cost of each piece.
        shares (`int`): Among how many.

    Returns:
        `list[list[int]]`: For each share the indices of its pieces, costliest first.
    """
    dealt: list[list[int]] = [[] for _ in range(shares)]
    load = [0.0] * shares
    for piece in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = min(range(shares), key=lambda share: (load[share], share))
        dealt[least].append(piece)
        load[least] += costs[piece]
    return dealt
