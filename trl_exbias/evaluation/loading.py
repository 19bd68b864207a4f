"""Loads a model, or an adapter over its base, for inference."""

from pathlib import Path
from typing import Any

from .identity import base_of_adapter, local_folder


def device_of(options: Any) -> str:
    """The device asked for, else the accelerator, where there is one."""
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return options.device or str(found)


def load_model(folder: str | Path, options: Any) -> Any:
    """
    A model, or an adapter over its base, for inference, on the device asked for.

    Args:
        options: Has `dtype`, `device` and `trust_remote_code`.
    """
    from transformers import AutoConfig

    from ..core.modeling import model_class

    device = device_of(options)
    kwargs = {"dtype": options.dtype, "trust_remote_code": options.trust_remote_code}
    folder = local_folder(str(folder))
    base = base_of_adapter(folder)
    loaded = folder if base is None else local_folder(base)
    config = AutoConfig.from_pretrained(loaded, trust_remote_code=options.trust_remote_code)
    model = model_class(config).from_pretrained(loaded, **kwargs)
    if base is None:
        return model.to(device).eval()
    # Not by transformers' own loading of adapters, which starts modules that were trained whole from scratch.
    from peft import PeftModel

    _make_room_for_new_tokens(model, folder, options.trust_remote_code)
    return PeftModel.from_pretrained(model, folder).to(device).eval()


def _make_room_for_new_tokens(model: Any, folder: Path, trust_remote_code: bool) -> None:
    """Enlarges the embeddings to those that the adapter was trained with, whose new rows it brings along."""
    rows = _saved_rows(model, folder)
    if rows is None and (folder / "tokenizer_config.json").is_file():
        # Only single rows are saved (`trainable_token_indices`): the tokenizer next to them says how many there were.
        from transformers import AutoTokenizer

        rows = len(AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code).get_vocab())
    if rows is not None and rows > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)


def _saved_rows(model: Any, folder: Path) -> int | None:
    """Rows of the input or output embeddings that are saved whole with an adapter; `None` where neither is."""
    from safetensors import safe_open

    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        return None
    names = {id(module): name for name, module in model.named_modules()}
    heads = [names[id(m)] for m in (model.get_input_embeddings(), model.get_output_embeddings()) if id(m) in names]
    with safe_open(path, framework="pt") as file:
        keys = file.keys()
        found = [
            file.get_slice(key).get_shape()[0]
            for key in keys
            if key.endswith(".weight") and "lora_" not in key and any(f".{head}." in key for head in heads)
        ]
    return max(found, default=None)
