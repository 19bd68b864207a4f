"""Several contexts in a row: which, and that it changes nothing but the padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.utils import add_fused_lm_head

from trl_exbias.core.layout import check_shared_context
from trl_exbias.core.packing import break_even_of, pack

from ..layouts import collator, gradients, random_examples
from ..tiny import tiny_model


@given(st.lists(st.integers(1, 500), min_size=1, max_size=16), st.floats(100, 1e5), st.none() | st.integers(1, 600))
@settings(max_examples=200, deadline=None)
def test_every_example_is_in_one_row_and_no_row_is_over_the_limit(lengths, break_even, limit):
    rows = pack(lengths, break_even, limit)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    if limit is not None:
        assert all(len(row) == 1 or sum(lengths[i] for i in row) <= limit for row in rows)

    def cost(rows):
        length = max(sum(lengths[i] for i in row) for row in rows)
        return len(rows) * length * (1 + length / break_even)

    assert cost(rows) <= cost([[i] for i in range(len(lengths))])


def test_rows_by_hand():
    """Examples of no common length share one row; four short ones fill a second row; where attention is dear, rows stay short."""
    assert pack([100, 30, 25], 1e6) == [[0, 1, 2]]
    assert pack([100, 25, 25, 25, 25], 500.0) == [[0], [1, 2, 3, 4]]
    assert pack([100] * 4, 100.0) == [[0], [1], [2], [3]]


def test_the_break_even_length_is_the_layers_weights_over_the_attentions_products():
    model = tiny_model()
    weights = sum(p.numel() for p in model.model.parameters()) - model.get_input_embeddings().weight.numel()
    config = model.config
    assert break_even_of(model) == pytest.approx(weights / config.num_hidden_layers / (2 * config.hidden_size))


@pytest.mark.parametrize(
    ("architecture", "attention"),
    # Gemma 2 has no fused attention in new releases of transformers.
    [("qwen2", "sdpa"), ("qwen2", "eager"), ("gpt2", "sdpa"), ("gpt2", "eager"), ("gemma2", "eager")],
)
@pytest.mark.parametrize("arranged", [[[0, 1, 2, 3, 4, 5]], [[0, 3], [1, 4, 5], [2]]])
def test_losses_and_gradients_are_those_of_a_row_for_each_context(architecture, attention, arranged):
    model = tiny_model(architecture, attn_implementation=attention)
    add_fused_lm_head(model)
    examples = random_examples(6)
    packed = collator().collate(examples, arranged)
    assert len(packed["input_ids"]) == len(arranged)
    found = gradients(model, packed)
    expected = gradients(model, collator(packed=False).collate(examples))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_no_token_is_read_twice_and_none_is_left_out():
    examples = random_examples(8)
    packed, padded = collator(break_even=1e6).collate(examples), collator(packed=False).collate(examples)
    assert packed["num_tokens"] == padded["num_tokens"] == (packed["segment_ids"] >= 0).sum()
    assert packed["input_ids"].numel() < padded["input_ids"].numel()
    for batch in (packed, padded):
        assert batch["example_ids"].unique().tolist() in ([-1, *range(8)], [*range(8)])


def test_a_window_is_the_longest_row():
    examples = random_examples(8)
    assert collator(window=60, break_even=1e6).collate(examples)["input_ids"].size(1) <= 60


def test_soft_labels_follow_their_examples():
    rows = [
        {
            "input_ids": [1, 2, *[3] * length],
            "labels": [-100, -100, *[3] * length],
            "context_length": 2,
            "branches": [],
            "soft_labels": {"hidden": torch.full((length, 1), float(i))},
        }
        for i, length in enumerate([9, 2, 7, 1])
    ]
    batch = collator(break_even=1e6)(rows)
    owners = batch["example_ids"][batch["shift_labels"] != -100]
    assert batch["soft_labels"]["hidden"].flatten().tolist() == owners.tolist()


@pytest.mark.parametrize("architecture", ["qwen2", "mistral", "gpt2", "gpt_neo"])
def test_an_architecture_that_takes_the_mask_takes_several_contexts(architecture):
    assert check_shared_context(tiny_model(architecture), packed=True) is None


def test_one_that_counts_positions_by_index_is_told_of():
    assert "several contexts" in check_shared_context(tiny_model("bloom"), packed=True)
