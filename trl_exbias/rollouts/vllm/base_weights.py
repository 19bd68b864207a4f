"""Whether a base model in memory still has the weights of the folder that it was loaded from."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from ...core.sharding import is_sharded
from ...core.upstream import cached_file, commit_hash


_ELEMENTS = 64


def differs_from_disk(base: PreTrainedModel) -> str | None:
    """
    What differs between disk and memory, because layers were left out, embeddings enlarged, or an earlier adapter
    merged into it. `None` where nothing was found: the shape and the first elements of each weight are compared.

    Args:
        base ([`~transformers.PreTrainedModel`]): With or without adapters in its layers.
    """
    if is_sharded(base) or getattr(base, "quantization_method", None) is not None:
        return None
    own = {
        name.replace(".base_layer", "").replace(".original_module", ""): parameter
        for name, parameter in base.named_parameters()
    }
    files = _files(base)
    if files and _num_layers(files[0].with_name("config.json")) not in (
        None,
        base.config.get_text_config().num_hidden_layers,
    ):
        return "the number of layers"
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dictionary
                saved = weights.get_slice(name)
                parameter = own.get(name)
                # Names that are converted on loading mean nothing.
                if parameter is None:
                    continue
                if list(parameter.shape) != saved.get_shape() or not _begin_alike(parameter, saved[:1]):
                    return f"`{name}`"
    return None


def _num_layers(config_file: Path) -> int | None:
    config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
    return config.get("text_config", config).get("num_hidden_layers")


def _begin_alike(parameter: torch.Tensor, saved: torch.Tensor) -> bool:
    mine = parameter.detach()[:1].flatten()[:_ELEMENTS].cpu()
    return torch.equal(mine, saved.flatten()[:_ELEMENTS].to(mine.dtype))


def _files(base: PreTrainedModel) -> list[Path]:
    folder = Path(base.name_or_path)
    if not folder.is_dir():
        commit = commit_hash(base.config)
        try:
            file = cached_file(base.name_or_path, "config.json", revision=commit, local_files_only=True)
        except OSError:
            return []
        if file is None:
            return []
        folder = Path(file).parent
    return sorted(folder.glob("*.safetensors"))
