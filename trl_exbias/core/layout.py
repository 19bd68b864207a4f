"""What a model makes of a shared layout: the mask of its attention, and whether it takes it."""

import contextlib
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PretrainedConfig

from .branches import GOLD, Branch, BranchedExample
from .collating import BranchCollator
from .modeling import (
    MASKABLE_IMPLEMENTATIONS,
    LMHead,
    agreement_tolerance,
    attention_mask_4d,
    base_causal_lm,
    inference,
    model_device,
    read_backbone,
    relative_distance,
)
from .spans import Span, attention_spans, has_own_windows, spans_of
from .upstream import attention_implementation


def branch_attention_mask(
    segment_ids: torch.Tensor, example_ids: torch.Tensor, position_ids: torch.Tensor, config: PretrainedConfig
) -> torch.Tensor | BlockMask | dict[str, torch.Tensor | BlockMask]:
    """
    The attention mask of a shared layout, in the form that the model and its attention implementation take.

    A token sees what stands before it of its own segment, and the context of its example; nothing of another example. Where a
    layer's attention has a window or goes by chunks, they are those of the positions, as in rows of their own.

    Args:
        segment_ids (`torch.Tensor` of shape `(rows, length)`): 0 context, 1.. branches, -1 padding.
        example_ids (`torch.Tensor` of shape `(rows, length)`): Which example of the batch, -1 padding.
        position_ids (`torch.Tensor` of shape `(rows, length)`): Position of each token in its example's context and branch.
        config ([`~transformers.PretrainedConfig`]): The model's.

    Returns:
        A `torch.Tensor` of shape `(rows, 1, length, length)`, with `flex_attention` a `BlockMask`; a dictionary of them by type of
        layer, where types differ and rows are longer than a window.
    """

    def sees(rows: Any, queries: Any, keys: Any, span: Span) -> torch.Tensor:
        """Whether a query sees a key; indices that broadcast."""
        own, other = segment_ids[rows, queries], segment_ids[rows, keys]
        # A padding query sees padding (itself at least): a row of the softmax without any key would be NaN.
        allowed = (keys <= queries) & ((other == own) | ((other == 0) & (own > 0)))
        allowed = allowed & (example_ids[rows, queries] == example_ids[rows, keys])
        if span.window is not None:
            allowed = allowed & (position_ids[rows, keys] > position_ids[rows, queries] - span.window)
        if span.chunk is not None:
            allowed = allowed & (position_ids[rows, keys] // span.chunk == position_ids[rows, queries] // span.chunk)
        return allowed

    num_rows, length = segment_ids.shape

    def made(span: Span) -> torch.Tensor | BlockMask:
        if attention_implementation(config) == "flex_attention":
            return create_block_mask(
                lambda row, _, query, key: sees(row, query, key, span),
                num_rows,
                None,
                length,
                length,
                device=segment_ids.device,
            )
        places = torch.arange(length, device=segment_ids.device)
        rows = torch.arange(num_rows, device=segment_ids.device).view(-1, 1, 1)
        return attention_mask_4d(sees(rows, places.view(1, -1, 1), places.view(1, 1, -1), span).unsqueeze(1), config)

    spans = attention_spans(config)
    if all(span.covers(length) for span in spans.values()):
        return made(Span())
    masks = {kind: made(span) for kind, span in spans.items()}
    return masks if len(masks) > 1 else next(iter(masks.values()))


def lay_out(inputs: dict[str, torch.Tensor], reader: torch.nn.Module) -> dict[str, Any]:
    """A batch of [`BranchCollator`] as the forward of `reader` takes it: segments become the mask of its attention."""
    laid_out: dict[str, Any] = dict(inputs)
    segment_ids, example_ids = laid_out.pop("segment_ids", None), laid_out.pop("example_ids", None)
    if segment_ids is not None:
        laid_out["attention_mask"] = branch_attention_mask(
            segment_ids, example_ids, inputs["position_ids"], base_causal_lm(reader).config
        )
    return laid_out


@torch.no_grad()
def check_shared_context(model: torch.nn.Module, packed: bool = False, windowed: bool = False) -> str | None:
    """
    Tries the shared layout on a few tokens against separate rows, and says what is in the way, `None` if nothing is.

    Catches what no list of architectures would: attention that ignores a custom mask (FlashAttention-2), position
    biases computed from the index (ALiBi), recurrent layers.

    Args:
        packed (`bool`): Whether two contexts share the row.
        windowed (`bool`): Whether the windows and chunks of the model's attention are a few tokens for the trial, less than the row.
    """
    base = base_causal_lm(model)
    implementation = attention_implementation(base.config)
    if implementation not in (*MASKABLE_IMPLEMENTATIONS, "flex_attention"):
        return f"`attn_implementation={implementation!r}` takes no mask of ours ('sdpa' does)"
    if windowed and has_own_windows(base.config):
        return f"{type(base).__name__} makes its windows by itself"
    examples = trial_examples(LMHead(model).vocab_size)[: 2 if packed else 1]
    collator = BranchCollator(lambda rows: {}, (GOLD, "other"), pad_token_id=0)
    shared = _on_device(collator.collate(examples, [list(range(len(examples)))]), model)
    collator.shared = False
    separate = _on_device(collator.collate(examples), model)
    what = "several contexts in a row" if packed else "a shared context"
    with inference(model, own_attention=True), spans_of(base.config, 3) if windowed else contextlib.nullcontext():
        expected = _read(model, lay_out(separate, model))
        try:
            found = _read(model, lay_out(shared, model))[0]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Whatever a foreign architecture raises at an unusual mask means the same: it cannot take it.
            return f"{type(base).__name__} does not take the mask of {what} ({type(error).__name__}: {error})"
    # For each example: context x_1..x_3, then x_4 with all of a branch but its last token.
    expected = torch.cat([part for i in range(0, len(expected), 2) for part in (expected[i, :5], expected[i + 1, 3:6])])
    distance = relative_distance(found, expected)
    if distance < agreement_tolerance(model, expected.dtype):
        return None
    return f"{type(base).__name__} reads {what} differently (hidden states {distance:.1e} off)"


def _on_device(batch: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a forward reads of a batch, where the model begins."""
    names = ("input_ids", "position_ids", "attention_mask", "segment_ids", "example_ids")
    return {name: batch[name].to(model_device(model)) for name in names if name in batch}


def _read(model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    return read_backbone(model, **inputs, use_cache=False).last_hidden_state


def trial_examples(vocab_size: int) -> list[BranchedExample]:
    """Two contexts of four tokens, with a gold branch of two and another of three each."""
    tokens = torch.randint(vocab_size, (2, 9), generator=torch.Generator().manual_seed(0)).tolist()
    return [
        BranchedExample(row[:4], [-100] * 4, [Branch(GOLD, row[4:6], row[4:6]), Branch("other", row[6:], row[6:])])
        for row in tokens
    ]
