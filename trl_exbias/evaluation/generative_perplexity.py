"""What another language model makes of responses, and of the references in their place."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import Figure, token_mean


if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


def generative_cross_entropy(
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Mapping[str, str],
    responses: Mapping[str, str],
    references: Mapping[str, str],
    max_batch_tokens: int = 16384,
    settings: dict[str, Any] | None = None,
) -> dict[str, Figure]:
    """
    Cross-entropies of texts after their prompts under a model that wrote neither, in nats per token of its tokenizer.

    Low is not good: a text that repeats itself is easy to predict. Written text has a value of its own, from which a response
    departs upwards (implausible) or downwards (repetitive, bland).

    Args:
        model ([`~transformers.PreTrainedModel`]): Scores; left as it was found.
        prompts, responses, references (`Mapping[str, str]`): By the prompt's id. Empty responses have no tokens to score.

    Returns:
        `dict[str, Figure]`: `generative_cross_entropy`, `reference_cross_entropy`, and `minus_reference`, their difference.

    Raises:
        ValueError: if every response is empty.
    """
    keys = list(prompts)
    values = {}
    for name, texts in (("generative_cross_entropy", responses), ("reference_cross_entropy", references)):
        rows = _scored(model, tokenizer, [(prompts[key], texts[key]) for key in keys], max_batch_tokens)
        sums, counts = (np.array([measure(row) for row in rows], dtype=float) for measure in (sum, len))
        if counts.sum():
            found = token_mean(name, keys, sums, counts, settings or {})
        else:
            found = Figure.over_prompts(name, dict.fromkeys(keys), settings=settings or {})
        # Neither direction is better by itself.
        values[name] = replace(found, higher_is_better=None)
    own, written = values.values()
    difference = {key: own.per_prompt[key] - written.per_prompt[key] for key in own.per_prompt}
    values["minus_reference"] = Figure.over_prompts(
        "minus_reference", difference, higher_is_better=None, settings=settings or {}
    )
    return values


def _scored(
    model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", pairs: list[tuple[str, str]], max_batch_tokens: int
) -> list[list[float]]:
    """NLL of each token of each text after its prompt, which is cut to the tokens that the model has positions for."""
    from ..core.likelihood import label_nll
    from ..core.modeling import position_limit
    from .measuring_models import tokens_of

    limit = position_limit(model)
    contexts = tokens_of(tokenizer, [prompt for prompt, _ in pairs])
    texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for _, text in pairs]
    if limit is not None:
        texts = [text[: limit - 1] for text in texts]
        contexts = [context[-(limit - len(text)) :] for context, text in zip(contexts, texts, strict=True)]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return label_nll(model, contexts, texts, texts, pad, max_batch_tokens)
