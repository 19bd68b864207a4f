"""Labels that cost a request each: on the disk as they come, until the shard that they belong to is written."""

import logging
import uuid
from pathlib import Path

import torch

from ...core.json_lines import append_record, read_records
from ...core.tensor_cache import TensorCache


logger = logging.getLogger(__name__)

_FILES = "answers-*.jsonl"
_TYPES = {"ids": torch.int32, "log_probs": torch.float32, "tail_log_prob": torch.float32}


class Journal:
    """
    The labels of a shard in the making, by one process.

    Args:
        folder (`Path`): The cache's.
    """

    def __init__(self, folder: Path):
        # Other processes, and other runs that share the folder, have journals of their own.
        self.path = Path(folder) / _FILES.replace("*", uuid.uuid4().hex[:12])

    def add(self, key: bytes, entry: dict[str, torch.Tensor]) -> None:
        """Keeps the entry of a key; it is on its way to the disk when this returns."""
        append_record(self.path, {"key": key.hex(), **{name: tensor.tolist() for name, tensor in entry.items()}})

    def forget(self) -> None:
        """The shard has been written."""
        self.path.unlink(missing_ok=True)


def recover(cache: TensorCache) -> None:
    """Writes a shard of what journals of runs that were killed hold, and removes them."""
    for path in sorted(cache.folder.glob(_FILES)):
        entries = {}
        for record in read_records(path):
            try:
                key = bytes.fromhex(record["key"])
                entry = {name: torch.tensor(record[name], dtype=kind) for name, kind in _TYPES.items()}
            except (KeyError, TypeError, ValueError):
                continue  # asked for again
            if key not in cache:
                entries[key] = entry
        if entries:
            cache.add(entries)
            logger.info(f"{len(entries)} answers of a run that ended early are taken over from {path}.")
        path.unlink(missing_ok=True)
