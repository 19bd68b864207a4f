"""The shared layout against separate rows: the same losses, the same gradients, whatever else is in the row."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PretrainedConfig
from trl.trainer.utils import add_fused_lm_head

from trl_exbias.core.branches import GOLD, Branch, BranchedExample
from trl_exbias.core.layout import branch_attention_mask, check_shared_context
from trl_exbias.core.losses import count_labels

from ..layouts import KINDS, collator, gradients, losses_by_kind, random_examples
from ..reference.losses import sequence_nll
from ..tiny import VOCAB_SIZE, tiny_model


tokens = st.integers(1, VOCAB_SIZE - 1)


@st.composite
def branches(draw, kind):
    ids = draw(st.lists(tokens, max_size=6))
    labels = [draw(st.one_of(st.just(-100), tokens)) for _ in ids]
    return Branch(kind, ids, labels)


@st.composite
def examples(draw):
    def some(min_size):
        ids = draw(st.lists(tokens, min_size=min_size, max_size=6))
        return ids, [draw(st.one_of(st.just(-100), tokens)) for _ in ids]

    # Where the contexts differ, they may have nothing in common.
    differ = draw(st.booleans())
    gold_rest = some(0) if differ else ([], [])
    prompt_rest = draw(st.lists(tokens, max_size=6)) if differ else []
    own = [draw(branches(draw(st.sampled_from(KINDS[1:])))) for _ in range(draw(st.integers(0, 3)))]
    return BranchedExample(*some(0 if differ else 1), [draw(branches(GOLD)), *own], gold_rest, prompt_rest)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    model = tiny_model(attn_implementation=request.param)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    return model


def test_losses_and_gradients_equal_separate_rows(model):
    """To 1e-5 relative, in float32."""
    batch = random_examples(6)
    shared_losses, shared_gradient = gradients(model, collator().collate(batch))
    separate_losses, separate_gradient = gradients(model, collator(shared=False).collate(batch))
    torch.testing.assert_close(shared_losses, separate_losses, rtol=1e-5, atol=0)
    distance = (shared_gradient - separate_gradient).norm() / separate_gradient.norm()
    assert distance < 1e-5


def test_losses_equal_the_reference(model):
    batch = random_examples(3)
    found = losses_by_kind(model, collator().collate(batch))
    for kind, total in zip(KINDS, found, strict=True):
        nll = [
            value
            for example in batch
            for branch in example.branches
            if branch.kind == kind
            for value in sequence_nll(model, example.context_ids, branch.input_ids, branch.labels)
        ]
        torch.testing.assert_close(total, torch.stack(nll).sum(), rtol=1e-5, atol=0)


def examples_with_a_prompt(num: int, seed: int = 0) -> list[tuple[dict, BranchedExample]]:
    """Rows whose rollouts stand after a prompt of their own, that shares 0, 1 or more tokens with gold's context."""
    generator = random.Random(seed)

    def ids(length):
        return [generator.randrange(1, VOCAB_SIZE) for _ in range(length)]

    found = []
    for number in range(num):
        shared = ids(number % 3)
        context, response = [*shared, *ids(3)], ids(4)
        labels = [generator.choice([-100, token]) for token in context] + response
        own = [
            Branch(kind, tokens, tokens[:2] + [-100] + tokens[3:])
            for kind, tokens in zip(KINDS[1:], (ids(5), ids(6)), strict=True)
        ]
        row = {"input_ids": [*context, *response], "labels": labels, "context_length": len(context), "branches": own}
        row["prompt"] = [*shared, *ids(2)]
        found.append((row, BranchedExample.from_row(*row.values())))
    return found


@pytest.mark.parametrize("shared", [True, False])
def test_each_branch_stands_after_its_own_context(model, shared):
    """The slow obvious way: a forward of each whole sequence, gold's and the prompt's; the same losses and gradients."""
    rows, batch = zip(*examples_with_a_prompt(6), strict=True)
    losses, gradient = gradients(model, collator(shared=shared).collate([*batch]))
    model.zero_grad()
    expected = dict.fromkeys(KINDS, 0.0)
    for row in rows:
        expected[GOLD] += sum(sequence_nll(model, row["input_ids"][:1], row["input_ids"][1:], row["labels"][1:]))
        for branch in row["branches"]:
            expected[branch.kind] += sum(sequence_nll(model, row["prompt"], branch.input_ids, branch.labels))
    sum(expected.values()).backward()
    expected_gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(losses, torch.stack([*expected.values()]).detach(), rtol=1e-5, atol=0)
    assert (gradient - expected_gradient).norm() < 1e-5 * expected_gradient.norm()


def test_a_batch_of_rows_with_prompts_is_laid_out_as_they_say():
    (row, example), *_ = examples_with_a_prompt(1)
    feature = {**row, "exbias_prompt_ids": row["prompt"], "branches": [vars(branch) for branch in row["branches"]]}
    expected = collator().collate([example])
    assert {name: part.tolist() for name, part in collator()([feature]).items()} == {
        name: part.tolist() for name, part in expected.items()
    }


@settings(max_examples=30, deadline=None)
@given(st.lists(examples(), min_size=1, max_size=3))
def test_any_batch_has_the_same_losses_and_labels_in_both_layouts(batch):
    lengths = [
        len(e.context_ids) + len(e.rest_of_context(b)[0]) + len(b.input_ids)
        for e in batch
        for b in e.branches
        if b.kind == GOLD or e.is_trained(b)
    ]
    if max(lengths) < 2:
        return  # nothing is predicted: TRL drops such rows
    model = _property_model()
    shared, separate = collator().collate(batch), collator(shared=False).collate(batch)
    assert count_labels(shared["branch_kinds"], 3).tolist() == count_labels(separate["branch_kinds"], 3).tolist()
    with torch.no_grad():
        torch.testing.assert_close(losses_by_kind(model, shared), losses_by_kind(model, separate), rtol=1e-4, atol=1e-4)


_MODEL = []


def _property_model():
    if not _MODEL:
        _MODEL.append(tiny_model())
        add_fused_lm_head(_MODEL[0])
    return _MODEL[0]


@torch.no_grad()
def test_order_of_branches_padding_and_batch_composition_change_nothing(model):
    batch = random_examples(5, seed=1)
    alone = sum(losses_by_kind(model, collator().collate([example])) for example in batch)
    together = losses_by_kind(model, collator().collate(batch))
    padded = losses_by_kind(model, collator(pad_to_multiple_of=64).collate(batch))
    reordered = losses_by_kind(
        model,
        collator().collate(
            [BranchedExample(e.context_ids, e.context_labels, e.branches[::-1]) for e in reversed(batch)]
        ),
    )
    for other in (together, padded, reordered):
        torch.testing.assert_close(other, alone, rtol=1e-5, atol=0)


def test_the_layout_by_hand():
    """x = 1 2 3, y = 4 5, ŷ = 6 7 8 with labels 4 - 9: each branch repeats 3, its last token is not read."""
    example = BranchedExample(
        [1, 2, 3], [-100, -100, 3], [Branch(GOLD, [4, 5], [4, 5]), Branch("mixed", [6, 7, 8], [4, -100, 9], 0.5)]
    )
    batch = collator(pad_to_multiple_of=4).collate([example])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 3, 6, 7, 0]]
    assert batch["shift_labels"].tolist() == [[-100, 3, 4, 5, 4, -100, 9, -100]]
    assert batch["branch_kinds"].tolist() == [[-1, 0, 0, 0, 1, -1, 1, -1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 4, 0]]
    assert batch["segment_ids"].tolist() == [[0, 0, 1, 1, 2, 2, 2, -1]]
    assert batch["branch_weights"].tolist() == [[1, 1, 1, 1, 0.5, 0.5, 0.5, 0]]
    assert batch["num_tokens"].item() == 7


def test_the_mask_by_hand():
    """Context c, two branches of two, one padding: a branch sees the context and itself up to now, no sibling."""
    config = PretrainedConfig(attn_implementation="sdpa")
    mask = branch_attention_mask(
        torch.tensor([[0, 1, 1, 2, 2, -1]]),
        torch.tensor([[0, 0, 0, 0, 0, -1]]),
        torch.tensor([[0, 0, 1, 0, 1, 0]]),
        config,
    )
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert mask.shape == (1, 1, 6, 6)
    assert mask[0, 0].int().tolist() == expected


def test_the_mask_of_two_contexts_by_hand():
    """Context and branch of two examples in one row: none sees the other."""
    config = PretrainedConfig(attn_implementation="sdpa")
    mask = branch_attention_mask(
        torch.tensor([[0, 1, 0, 1, 2]]), torch.tensor([[4, 4, 2, 2, 2]]), torch.tensor([[0, 0, 0, 0, 0]]), config
    )
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 0, 1]]
    assert mask[0, 0].int().tolist() == expected


def test_shared_rows_are_as_short_as_promised():
    """Four branches of 10 after 128 tokens: 127 + 4 · 10 positions instead of 4 · 137."""
    branch = list(range(1, 11))
    example = BranchedExample(
        [1] * 128, [-100] * 128, [Branch(GOLD, branch, branch), *[Branch("own", branch, branch)] * 3]
    )
    assert collator().collate([example])["input_ids"].shape == (1, 167)
    assert collator(shared=False).collate([example])["input_ids"].shape == (4, 137)


def test_a_row_beyond_the_attention_window_falls_back_to_separate_rows():
    batch = random_examples(3)
    assert "segment_ids" in collator(window=1000).collate(batch)
    assert "attention_mask" in collator(window=10).collate(batch)


def test_rows_without_branches_go_to_the_base_collator():
    rows = [{"input_ids": [1, 2], "labels": [1, 2], "context_length": 1}]
    assert collator()(rows) == [{"input_ids": [1, 2], "labels": [1, 2]}]


def test_features_are_split_at_the_context_length():
    row = {
        "input_ids": [1, 2, 3, 4],
        "labels": [-100, -100, 3, 4],
        "context_length": 2,
        "branches": [{"kind": "own", "input_ids": [9], "labels": [-100], "weight": 1.0}],
    }
    batch = collator()([row])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 2]]
    assert batch["shift_labels"].tolist() == [[-100, 3, 4, -100]]


def test_a_branch_needs_one_label_for_each_token():
    with pytest.raises(ValueError, match="got 1 labels for 2 tokens in a branch of kind 'own'"):
        Branch("own", [1, 2], [1])


class TestCheckSharedContext:
    @pytest.mark.parametrize("architecture", ["qwen2", "mistral", "gemma2", "gpt2", "gpt_neo"])
    def test_finds_nothing_in_the_way(self, architecture):
        assert check_shared_context(tiny_model(architecture)) is None

    def test_finds_position_biases_computed_from_the_mask(self):
        assert "Bloom" in check_shared_context(tiny_model("bloom"))

    def test_names_an_implementation_that_takes_no_mask(self):
        model = tiny_model()
        model.config._attn_implementation_internal = "flash_attention_2"
        assert "'flash_attention_2'" in check_shared_context(model)

    def test_leaves_the_model_in_training_mode(self):
        model = tiny_model().train()
        check_shared_context(model)
        assert all(module.training for module in model.modules())
