"""Tensors on disk, addressed by content: what follows from the same tokens and the same weights is worked out once."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .files import write_atomically


logger = logging.getLogger(__name__)

_KEY_BYTES = 16
_OFFSETS, _KEYS = "offsets", "keys"
#: Names of the shards.
SHARDS = "shard-*.safetensors"


def content_key(*parts: Any) -> bytes:
    """The address of what follows from these sequences of integers."""
    digest = hashlib.blake2b(digest_size=_KEY_BYTES)
    for part in parts:
        content = np.asarray(part, dtype=np.int64).tobytes()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.digest()


class TensorCache:
    """
    Tensors by address, in one form, for weights of one model.

    Args:
        folder (`Path`): Where the shards are (`shard-<hash>.safetensors`); made when the first is written.
        what (`str`): What a message calls its entries.

    A shard that cannot be read is removed with a warning: its entries are worked out again.
    """

    def __init__(self, folder: Path, what: str):
        self.folder, self.what = Path(folder), what
        self._files: dict[Path, safe_open] = {}
        self._places: dict[bytes, tuple[Path, int, int]] = {}
        self.refresh()

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def __getstate__(self) -> dict[str, Any]:
        # A worker process of a data loader opens the files for itself.
        return {**self.__dict__, "_files": {}}

    def refresh(self) -> None:
        """Takes in shards that other processes have written."""
        known = {path for path, _, _ in self._places.values()}
        for path in sorted(self.folder.glob(SHARDS)):
            if path in known:
                continue
            try:
                file = self._open(path)
                keys, offsets = file.get_tensor(_KEYS).numpy(), file.get_tensor(_OFFSETS).tolist()
            except SafetensorError as error:
                logger.warning(f"{path} cannot be read ({error}): removed; its {self.what} are worked out again.")
                path.unlink()
                continue
            for key, start, end in zip(keys, offsets, offsets[1:], strict=False):
                self._places[key.tobytes()] = path, start, end

    def add(self, entries: dict[bytes, dict[str, torch.Tensor]]) -> None:
        """Writes one shard: for each key its tensors, whose first dimension is the positions."""
        lengths = [len(next(iter(tensors.values()))) for tensors in entries.values()]
        names = next(iter(entries.values()))
        content = {name: torch.cat([tensors[name] for tensors in entries.values()]).contiguous() for name in names}
        content[_OFFSETS] = torch.tensor([0, *np.cumsum(lengths).tolist()])
        content[_KEYS] = torch.from_numpy(
            np.frombuffer(b"".join(entries), dtype=np.uint8).reshape(-1, _KEY_BYTES).copy()
        )
        name = hashlib.sha256(b"".join(entries)).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / f"shard-{name}.safetensors", save(content))
        self.refresh()

    def get(self, key: bytes) -> dict[str, torch.Tensor]:
        """The tensors of an entry."""
        path, start, end = self._places[key]
        file = self._open(path)
        names = [name for name in file.keys() if name not in (_OFFSETS, _KEYS)]  # noqa: SIM118 - not a dict
        return {name: file.get_slice(name)[start:end] for name in names}

    def _open(self, path: Path) -> safe_open:
        if path not in self._files:
            self._files[path] = safe_open(path, framework="pt")
        return self._files[path]
