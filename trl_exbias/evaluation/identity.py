"""Which model it is: where its files are, and a fingerprint of what shapes its output."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..core.errors import UsageError


ADAPTER_CONFIG = "adapter_config.json"
# What a file says of its maker and its place, and not of the model.
_IRRELEVANT = ("_name_or_path", "transformers_version", "base_model_name_or_path", "revision", "inference_mode")
_WEIGHTS = ("*.safetensors", "*.bin")
_HUB_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.py")
_HUB_IGNORED = ("original/*", "onnx/*", "*consolidated*")
_BLOCK_BYTES = 1 << 22


def model_folder(name: str) -> str:
    """
    The folder of a model. For a run directory without a model of its own, it is the newest checkpoint. A hub id is itself.

    Raises:
        ValueError: for a folder that holds neither a model nor an adapter nor a checkpoint.
    """
    path = Path(name)
    if not path.is_dir() or any((path / file).is_file() for file in ("config.json", ADAPTER_CONFIG)):
        return name
    checkpoints = sorted(path.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[-1]))
    if not checkpoints:
        raise UsageError(f"{name} holds neither a model nor an adapter nor a checkpoint.")
    return str(checkpoints[-1])


def local_folder(name: str) -> Path:
    """
    `model_folder` on this disk: files of a hub id are fetched, or found in the cache.

    Raises:
        ValueError: if there is no such folder, and nothing of that name on the hub or in its cache.
    """
    folder = Path(model_folder(name))
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        for weights in _WEIGHTS:
            found = Path(
                snapshot_download(name, allow_patterns=[weights, *_HUB_FILES], ignore_patterns=[*_HUB_IGNORED])
            )
            if weight_files(found):
                return found
    except (HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError) as error:
        raise UsageError(
            f"`{name}` is not a folder here, and cannot be had from the hub: {str(error).splitlines()[0]}"
        ) from error
    raise UsageError(f"`{name}` on the hub has no weights ({', '.join(_WEIGHTS)}).")


def weight_files(folder: Path) -> list[Path]:
    """The files with a model's weights: safetensors, or the older format where there are none."""
    for pattern in _WEIGHTS:
        found = sorted(path for path in folder.glob(pattern) if path.name != "training_args.bin")
        if found:
            return found
    return []


def model_fingerprint(folder: str | Path) -> str:
    """
    Identity of a saved model: 32 hexadecimal digits of its configuration and every byte of its weights.

    An adapter's includes its base's. The same weights in another folder are the same model; how they are split into files
    is part of the identity.

    Raises:
        ValueError: for a folder without weights.
    """
    folder = Path(folder)
    files = weight_files(folder)
    if not files:
        raise UsageError(f"{folder} holds no weights ({', '.join(_WEIGHTS)}).")
    digest = hashlib.blake2b(digest_size=16)
    for name in ("config.json", ADAPTER_CONFIG):
        if (folder / name).is_file():
            digest.update(_relevant(json.loads((folder / name).read_text(encoding="utf-8"))).encode())
    base = base_of_adapter(folder)
    if base is not None:
        digest.update(model_fingerprint(local_folder(base)).encode())
    # Hashing lets go of the interpreter's lock: shards are read side by side.
    with ThreadPoolExecutor(4) as pool:
        for path, content in zip(files, pool.map(_hash_of, files), strict=True):
            digest.update(f"{path.name}:{content}".encode())
    return digest.hexdigest()


def base_of_adapter(folder: Path) -> str | None:
    """The model that an adapter was made for; `None` where the folder holds a whole model."""
    path = Path(folder) / ADAPTER_CONFIG
    return json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"] if path.is_file() else None


def _relevant(config: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in config.items() if k not in _IRRELEVANT}, sort_keys=True)


def _hash_of(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
