"""Memory of tensors on the device: the allocator's counters on a GPU; on a CPU, storages counted as they come and go."""

import contextlib
import gc
import weakref
from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .device import DEVICE, ON_CUDA


class Meter:
    """Bytes of tensors on the device. Made by [`metered`]."""

    def live(self) -> int:
        """Bytes that stand now."""
        gc.collect()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """The most bytes that stood at one time since [`reset_peak`]."""
        return torch.cuda.max_memory_allocated()

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    @contextlib.contextmanager
    def limited(self, more: int) -> Iterator[None]:
        """In the block, memory runs out when `more` bytes are wanted beyond those that stand now."""
        self.live()
        torch.cuda.empty_cache()
        allowed, total = torch.cuda.memory_reserved() + more, torch.cuda.get_device_properties(DEVICE).total_memory
        torch.cuda.set_per_process_memory_fraction(allowed / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)


class CountedMeter(Meter, TorchDispatchMode):
    """The same for a CPU, where no allocator counts. What kernels need for themselves does not show."""

    def __init__(self):
        super().__init__()
        self._known: dict[int, weakref.ref] = {}
        self._live = self._peak = 0
        self._limit: float = float("inf")

    def live(self) -> int:
        gc.collect()
        return self._live

    def peak(self) -> int:
        return self._peak

    def reset_peak(self) -> None:
        self._peak = self._live

    @contextlib.contextmanager
    def limited(self, more: int) -> Iterator[None]:
        self._limit = self.live() + more
        try:
            yield
        finally:
            self._limit = float("inf")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in _tensors((args, kwargs)):
            self._count(tensor, is_new=False)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._count(tensor, is_new=True)
        self._peak = max(self._peak, self._live)
        if self._live > self._limit:
            raise torch.OutOfMemoryError("Tried to allocate more than the test allows.")
        return result

    def _count(self, tensor: torch.Tensor, is_new: bool) -> None:
        if tensor.device.type == "meta":
            return
        # oneDNN's layouts have no storage.
        holder, size = (tensor, tensor.nbytes) if tensor.is_mkldnn else _storage_of(tensor)
        key = id(holder)
        if key in self._known:
            return
        size = size if is_new else 0

        def forget(_, key=key, size=size):
            del self._known[key]
            self._live -= size

        self._known[key] = weakref.ref(holder, forget)
        self._live += size


def _storage_of(tensor: torch.Tensor) -> tuple[torch.UntypedStorage, int]:
    storage = tensor.untyped_storage()
    return storage, storage.nbytes()


def _tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@contextlib.contextmanager
def metered() -> Iterator[Meter]:
    """Meters the block. A CPU's meter knows nothing of the tensors that stand before it."""
    if ON_CUDA:
        for dtype in (torch.float32, torch.bfloat16):
            # cuBLAS takes its workspace at first use, and keeps it.
            a = torch.ones(64, 64, dtype=dtype, device=DEVICE)
            torch.nn.functional.linear(a, a, a[0])
        del a
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        yield Meter()
    else:
        with CountedMeter() as meter:
            yield meter
