"""Models that measure others' texts: where they are, what identifies them, and what they make of a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import UsageError
from .identity import local_folder, model_fingerprint
from .subject import TOKENIZER_FILES


if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


def measuring_folder(name: str, option: str) -> Path:
    """
    The folder of a model that measures, fetched where it is a hub id.

    Raises:
        ValueError: if there is none, or it has no tokenizer; the message names the option that asked for it.
    """
    try:
        folder = local_folder(name)
    except UsageError as error:
        raise UsageError(f"--{option}: {error} Give a folder or a hub id that can be had.") from error
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise UsageError(f"--{option}: {name} holds no tokenizer. Save one with the model.")
    return folder


def identity(folder: Path, name: str) -> dict[str, str]:
    """What a figure's settings say of the model that measured: another one's figures are not comparable."""
    return {"model": name, "fingerprint": model_fingerprint(folder)[:16]}


def tokens_of(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], max_length: int | None = None
) -> list[list[int]]:
    """
    Token ids of texts, at most `max_length` of each; an empty text has one token: the one that begins or ends a text.

    Raises:
        ValueError: for an empty text and a tokenizer with neither.
    """
    encoded = [ids[:max_length] for ids in tokenizer([*texts], return_attention_mask=False, verbose=False)["input_ids"]]
    if all(encoded):
        return encoded
    nothing = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
    if nothing is None:
        raise UsageError(
            "The measuring model's tokenizer has no token that begins or ends a text: choose another model."
        )
    return [ids or [nothing] for ids in encoded]


def text_features(
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    max_length: int,
    max_batch_tokens: int,
) -> np.ndarray:
    """
    Last hidden states: that of the last token from a causal model, which has read all of the text; the mean over the tokens
    from an encoder.

    Args:
        model ([`~transformers.PreTrainedModel`]): Without a head.
        max_length (`int`): Tokens read of each text.

    Returns:
        `np.ndarray` of shape `(texts, hidden size)`: float32.
    """
    import torch

    from ..core.batching import run_in_batches
    from ..core.reading import pad_right

    rows = tokens_of(tokenizer, texts, max_length)
    found: list[Any] = [None] * len(rows)
    is_causal = _is_causal(model)
    device = next(model.parameters()).device

    @torch.inference_mode()
    def run(batch: list[int]) -> None:
        ids = pad_right([rows[i] for i in batch], 0)
        mask = torch.arange(ids.size(1)) < torch.tensor([[len(rows[i])] for i in batch])
        output = model(input_ids=ids.to(device), attention_mask=mask.long().to(device))
        hidden = output.last_hidden_state.float().cpu()
        for i, states in zip(batch, hidden, strict=True):
            own = states[: len(rows[i])]
            found[i] = (own[-1] if is_causal else own.mean(0)).numpy()

    run_in_batches(run, [len(row) for row in rows], max_batch_tokens)
    return np.stack(found)


def _is_causal(model: Any) -> bool:
    """Whether a token cannot see the ones after it: tried out, as configurations do not say it alike."""
    import torch

    device = next(model.parameters()).device
    with torch.inference_mode():
        ids = torch.tensor([[5, 6, 7], [5, 6, 8]], device=device) % model.config.get_text_config().vocab_size
        first = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
    return torch.allclose(first[0], first[1], atol=1e-5)
