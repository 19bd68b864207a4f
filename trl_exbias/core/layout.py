"""What a model makes of a shared layout: the mask of its attention, and whether it takes it."""

import torch
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
)
from .upstream import attention_implementation


def branch_attention_mask(
    segment_ids: torch.Tensor, example_ids: torch.Tensor, config: PretrainedConfig
) -> torch.Tensor:
    """
    The 4-D attention mask of a shared layout, in the form that the attention implementation takes.

    A token sees what stands before it of its own segment, and the context of its example; nothing of another example.

    Args:
        segment_ids (`torch.Tensor` of shape `(rows, length)`): 0 context, 1.. branches, -1 padding.
        example_ids (`torch.Tensor` of shape `(rows, length)`): Which example of the batch, -1 padding.
        config ([`~transformers.PretrainedConfig`]): The model's.

    Returns:
        `torch.Tensor` of shape `(rows, 1, length, length)`.
    """
    queries, keys = segment_ids.unsqueeze(2), segment_ids.unsqueeze(1)
    length = segment_ids.size(1)
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    # A padding query sees padding (itself at least): a row of the softmax without any key would be NaN.
    allowed = causal & ((keys == queries) | ((keys == 0) & (queries > 0)))
    allowed &= example_ids.unsqueeze(2) == example_ids.unsqueeze(1)
    return attention_mask_4d(allowed.unsqueeze(1), config)


def lay_out(inputs: dict[str, torch.Tensor], reader: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A batch of [`BranchCollator`] as the forward of `reader` takes it: segments become the mask of its attention."""
    inputs = dict(inputs)
    segment_ids, example_ids = inputs.pop("segment_ids", None), inputs.pop("example_ids", None)
    if segment_ids is not None:
        inputs["attention_mask"] = branch_attention_mask(segment_ids, example_ids, base_causal_lm(reader).config)
    return inputs


@torch.no_grad()
def check_shared_context(model: torch.nn.Module, packed: bool = False) -> str | None:
    """
    Tries the shared layout on a few tokens against separate rows, and says what is in the way, `None` if nothing is.

    Catches what no list of architectures would: attention that ignores a custom mask (FlashAttention-2), position
    biases computed from the index (ALiBi), recurrent layers.

    Args:
        packed (`bool`): Whether two contexts share the row.
    """
    base = base_causal_lm(model)
    implementation = attention_implementation(base.config)
    if implementation not in MASKABLE_IMPLEMENTATIONS:
        return f"`attn_implementation={implementation!r}` takes no mask of ours ('sdpa' does)"
    examples = trial_examples(LMHead(model).vocab_size)[: 2 if packed else 1]
    collator = BranchCollator(lambda rows: {}, (GOLD, "other"), pad_token_id=0)
    shared = collator.collate(examples, [list(range(len(examples)))])
    collator.shared = False
    separate = collator.collate(examples)
    device = model_device(model)
    what = "several contexts in a row" if packed else "a shared context"
    with inference(model):
        expected = read_backbone(
            model,
            input_ids=separate["input_ids"].to(device),
            attention_mask=separate["attention_mask"].to(device),
            use_cache=False,
        ).last_hidden_state
        try:
            found = read_backbone(
                model,
                input_ids=shared["input_ids"].to(device),
                position_ids=shared["position_ids"].to(device),
                attention_mask=branch_attention_mask(
                    shared["segment_ids"].to(device), shared["example_ids"].to(device), base.config
                ),
                use_cache=False,
            ).last_hidden_state[0]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Whatever a foreign architecture raises at an unusual mask means the same: it cannot take it.
            return f"{type(base).__name__} does not take the mask of {what} ({type(error).__name__}: {error})"
    # Of each example: context x_1..x_3, then x_4 with all of a branch but its last token.
    expected = torch.cat([part for i in range(0, len(expected), 2) for part in (expected[i, :5], expected[i + 1, 3:6])])
    distance = ((found - expected).float().norm() / expected.float().norm()).item()
    if distance < agreement_tolerance(model, expected.dtype):
        return None
    return f"{type(base).__name__} reads {what} differently (hidden states {distance:.1e} off)"


def trial_examples(vocab_size: int) -> list[BranchedExample]:
    """Two contexts of four tokens, with a gold branch of two and another of three each."""
    tokens = torch.randint(vocab_size, (2, 9), generator=torch.Generator().manual_seed(0)).tolist()
    return [
        BranchedExample(row[:4], [-100] * 4, [Branch(GOLD, row[4:6], row[4:6]), Branch("other", row[6:], row[6:])])
        for row in tokens
    ]
