"""The shared layout under every kind of attention: windows, chunks, flex_attention, and rows without a mask."""

import pytest
import torch
from transformers import GPTNeoConfig, PretrainedConfig
from trl.trainer.utils import add_fused_lm_head

from trl_exbias.core.layout import branch_attention_mask, check_shared_context
from trl_exbias.core.spans import Span, attention_spans, attention_window, spans_of

from ..layouts import collator, gradients, random_examples
from ..tiny import tiny_model


WINDOWED = [
    ("mistral", {"attn_implementation": "sdpa", "sliding_window": 8}),
    ("mistral", {"attn_implementation": "eager", "sliding_window": 8}),
    ("gemma2", {"attn_implementation": "eager", "sliding_window": 8}),
    ("gemma3", {"attn_implementation": "sdpa", "sliding_window": 8}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
]


def assert_equal_gradients(model, batch, other):
    for ours, theirs in zip(gradients(model, batch), gradients(model, other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize(("architecture", "options"), WINDOWED)
@pytest.mark.parametrize("arranged", [None, [[0, 1, 2, 3]]])
def test_rows_longer_than_the_windows_equal_separate_rows(architecture, options, arranged):
    model = tiny_model(architecture, **options)
    add_fused_lm_head(model)
    examples = random_examples(4)
    shared = collator(packed=False).collate(examples, arranged)
    assert shared["input_ids"].size(1) > 3 * attention_window(model.config)
    assert_equal_gradients(model, shared, collator(shared=False).collate(examples))


@pytest.mark.parametrize(("architecture", "options"), [*WINDOWED, ("llama4", {"attention_chunk_size": 8})])
def test_a_trial_with_windows_of_a_few_tokens_finds_who_takes_ours(architecture, options):
    model = tiny_model(architecture, **options)
    before = model.config.to_dict()
    assert check_shared_context(model, windowed=True) is None
    assert model.config.to_dict() == before


def test_attention_in_chunks_equals_separate_rows():
    model = tiny_model("llama4", attention_chunk_size=8)
    examples = random_examples(4)
    shared, separate = collator().collate(examples, [[0, 1, 2, 3]]), collator(shared=False).collate(examples)

    def sums(batch):
        model.zero_grad()
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch.get("attention_mask")}
        if "segment_ids" in batch:
            ids = (batch["segment_ids"], batch["example_ids"], batch["position_ids"])
            inputs |= {"attention_mask": branch_attention_mask(*ids, model.config), "position_ids": ids[2]}
        logits = model(**inputs, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["shift_labels"].flatten(), reduction="sum"
        )
        losses.backward()
        return torch.cat([losses.detach()[None], *(p.grad.flatten() for p in model.parameters() if p.grad is not None)])

    torch.testing.assert_close(sums(shared), sums(separate), rtol=1e-5, atol=1e-4)


def test_windows_by_hand():
    """A context of three and two branches of two, the first token of each at the context's last: windows of two positions."""
    config = PretrainedConfig(attn_implementation="sdpa", sliding_window=2)
    segments, positions = torch.tensor([[0, 0, 1, 1, 2, 2]]), torch.tensor([[0, 1, 2, 3, 2, 3]])
    mask = branch_attention_mask(segments, torch.zeros_like(segments), positions, config)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]


def test_an_architecture_that_makes_its_own_windows_keeps_short_rows():
    model = tiny_model("gpt_neo")
    assert attention_window(model.config) == 256
    assert "by itself" in check_shared_context(model, windowed=True)


def test_spans():
    assert attention_spans(PretrainedConfig()) == {"": Span()}
    assert attention_spans(PretrainedConfig(sliding_window=4, use_sliding_window=False)) == {"": Span()}
    assert attention_spans(tiny_model("llama4", attention_chunk_size=8).config) == {
        "chunked_attention": Span(chunk=8),
        "full_attention": Span(),
    }
    assert attention_window(GPTNeoConfig(num_layers=2, attention_types=[[["global"], 2]])) is None
    config = PretrainedConfig(sliding_window=4)
    with pytest.raises(KeyError), spans_of(config, 2):
        assert config.sliding_window == 2
        raise KeyError
    assert config.sliding_window == 4


@pytest.mark.parametrize(("architecture", "window"), [("qwen2", None), ("mistral", 8), ("gemma3", 8)])
def test_flex_attention_reads_what_sdpa_reads(architecture, window):
    """Forward alone: on a CPU flex_attention has no gradients."""
    examples = random_examples(4)
    batch = collator().collate(examples, [[0, 1], [2, 3]])
    options = {} if window is None else {"sliding_window": window}
    found = {}
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        for attention in ("sdpa", "flex_attention"):
            model = tiny_model(architecture, attn_implementation=attention, **options).eval()
            assert check_shared_context(model, packed=True, windowed=window is not None) is None
            ids = (batch["segment_ids"], batch["example_ids"], batch["position_ids"])
            masks = branch_attention_mask(*ids, model.config)
            output = model.model(batch["input_ids"], attention_mask=masks, position_ids=ids[2], use_cache=False)
            found[attention] = output.last_hidden_state[batch["segment_ids"] >= 0]
    torch.testing.assert_close(found["flex_attention"], found["sdpa"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("architecture", "options"), [("qwen2", {}), ("gpt2", {}), *WINDOWED[:1], *WINDOWED[2:4]])
def test_separate_rows_in_one_equal_padded_ones(architecture, options):
    """How FlashAttention takes them: one row, no mask, positions that start again."""
    model = tiny_model(architecture, **options)
    add_fused_lm_head(model)
    examples = random_examples(4)
    one_row = collator(shared=False, one_row=True).collate(examples)
    assert len(one_row["input_ids"]) == 1
    assert one_row["input_ids"].numel() == one_row["num_tokens"]
    assert "attention_mask" not in one_row
    assert_equal_gradients(model, one_row, collator(shared=False).collate(examples))
