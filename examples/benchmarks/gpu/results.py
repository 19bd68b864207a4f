"""A part's results: one JSON, written again after every figure, so that a run cut off anywhere keeps what it has."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import torch


FINISHED = "finished"
_PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "triton")


class Results:
    """
    The JSON of a part: figures, and for each when it was there, in seconds since the process began, and how long it took.

    Args:
        path (`Path`): The file; what it holds from an earlier run with the same settings is kept.
        settings (`dict[str, Any]`): What figures depend on. Results of other settings are dropped.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        settings = json.loads(json.dumps(settings))
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if found.get("settings") != settings:
            found = {"settings": settings, "figures": {}}
        self.content = {"seconds": {}, **found, "machine": machine()}
        self._took: dict[str, float] = {}
        self._began = self._last = psutil.Process().create_time()
        self._write()

    def __contains__(self, key: str) -> bool:
        return key in self.content["figures"]

    def __getitem__(self, key: str) -> Any:
        return self.content["figures"][key]

    def put(self, key: str, value: Any) -> None:
        """Keeps a figure, or several under one name; also again, when there is more of it."""
        self.content["figures"][key] = value
        now = time.time()
        took = now - self._last + self._took.get(key, 0.0)
        self._took[key], self._last = took, now
        self.content["seconds"][key] = {"since_start": round(now - self._began, 1), "took": round(took, 1)}
        self._write()

    def finish(self) -> None:
        """Says that the part has nothing left to do."""
        self.content[FINISHED] = True
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1), encoding="utf-8")
        os.replace(partial, self.path)


def machine() -> dict[str, Any]:
    """Card, driver, date and versions."""
    has_gpu = torch.cuda.is_available()
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "card": torch.cuda.get_device_name() if has_gpu else None,
        "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if has_gpu else None,
        "driver": _driver() if has_gpu else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        **versions,
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None
