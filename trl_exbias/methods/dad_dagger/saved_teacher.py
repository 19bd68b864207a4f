"""What is saved with a teacher and read without its weights: its configuration and its tokenizer."""

import json
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from ...core.upstream import adapter_config_file, cached_file


def saved_config(name: str, init_kwargs: dict[str, Any]) -> PretrainedConfig:
    """
    The configuration of a model, or of a LoRA adapter's base model.

    Args:
        init_kwargs (`dict`): For the model's `from_pretrained`; what concerns the hub is taken from them.
    """
    hub_kwargs = _hub_kwargs(init_kwargs)
    return AutoConfig.from_pretrained(_base_model_name(name, hub_kwargs), **hub_kwargs)


def saved_tokenizer(name: str, init_kwargs: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    """The tokenizer saved with a model, or with a LoRA adapter or its base model; `None` where there is none."""
    hub_kwargs = _hub_kwargs(init_kwargs)
    for candidate in dict.fromkeys((name, _base_model_name(name, hub_kwargs))):
        # Asked for first: transformers makes an empty tokenizer for a folder without one.
        if candidate and _has_tokenizer(candidate, hub_kwargs):
            return AutoTokenizer.from_pretrained(candidate, **hub_kwargs)
    return None


def _hub_kwargs(init_kwargs: dict[str, Any]) -> dict[str, Any]:
    known = ("revision", "trust_remote_code", "token", "local_files_only")
    return {k: v for k, v in init_kwargs.items() if k in known}


def _has_tokenizer(name: str, hub_kwargs: dict[str, Any]) -> bool:
    try:
        return cached_file(name, "tokenizer_config.json", **_file_kwargs(hub_kwargs)) is not None
    except OSError:
        return False


def _file_kwargs(hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """What concerns a single file of a model."""
    return {k: v for k, v in hub_kwargs.items() if k != "trust_remote_code"}


def _base_model_name(name: str, hub_kwargs: dict[str, Any]) -> str:
    """The base model of a LoRA adapter's folder, or `name` itself."""
    file = adapter_config_file(name, **_file_kwargs(hub_kwargs)) if name else None
    if file is None:
        return name
    with open(file, encoding="utf-8") as stream:
        return json.load(stream)["base_model_name_or_path"]
