"""Several plain rows in one row of the batch: the same labels, the same loss and gradients, in fewer slots."""

import random

import pytest
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trl_exbias.core.packed_rows import EXAMPLE_LENGTHS, PackedRowCollator, check_packed_rows

from ..tiny import VOCAB_SIZE, tiny_model


def collator(**options) -> PackedRowCollator:
    return PackedRowCollator(DataCollatorForLanguageModeling(pad_token_id=0), pad_token_id=0, **options)


def rows(num: int = 8, longest: int = 40) -> list[dict]:
    generator = random.Random(0)
    lengths = [longest, *(generator.randint(1, longest) for _ in range(num - 1))]
    found = []
    for length in lengths:
        ids = [generator.randrange(1, VOCAB_SIZE) for _ in range(length)]
        prompt = generator.randint(0, length)
        found.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return found


def loss_and_gradients(model, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean over labels."""
    model.zero_grad()
    inputs = {name: value for name, value in batch.items() if name not in (EXAMPLE_LENGTHS, "labels")}
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("qwen2", {"attn_implementation": "sdpa"}),
        ("qwen2", {"attn_implementation": "eager"}),
        ("gpt2", {"attn_implementation": "sdpa"}),
        ("mistral", {"attn_implementation": "sdpa", "sliding_window": 8}),
        ("gemma2", {"attn_implementation": "eager", "sliding_window": 8}),
        ("gemma3", {"attn_implementation": "sdpa", "sliding_window": 8}),
        ("gpt_neo", {}),
    ],
)
@pytest.mark.parametrize("one_row", [False, True])
def test_loss_and_gradients_are_those_of_a_row_for_each_example(architecture, options, one_row):
    model = tiny_model(architecture, **options)
    examples = rows()
    packed = collator(packed=True, one_row=one_row, break_even=1e6)(examples)
    padded = collator()(examples)
    assert packed["input_ids"].numel() < padded["input_ids"].numel()
    assert not one_row or len(packed["input_ids"]) == 1
    for ours, theirs in zip(loss_and_gradients(model, packed), loss_and_gradients(model, padded), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_attention_in_chunks_stays_in_rows_of_a_chunk():
    """Llama 4 counts its chunks from the start of a row, whatever the positions."""
    model = tiny_model("llama4", attention_chunk_size=32)
    packer = collator()
    assert packer.allow(model) is None
    assert packer.limit == 32
    packer.break_even = 1e6
    examples = rows(longest=31)
    packed = packer(examples)
    assert packed["input_ids"].size(1) <= 32
    for ours, theirs in zip(
        loss_and_gradients(model, packed), loss_and_gradients(model, collator()(examples)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_by_hand():
    batch = collator(packed=True, break_even=1e6)(
        [
            {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, 3, 4, 5]},
            {"input_ids": [6, 7], "labels": [6, 7]},
            {"input_ids": [8, 9], "labels": [-100, 9]},
        ]
    )
    assert list(batch) == [EXAMPLE_LENGTHS, "input_ids", "labels", "position_ids"]
    assert batch[EXAMPLE_LENGTHS].tolist() == [5, 2, 2]
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3, 4, 5, -100, 7, -100, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 0, 1]]


def test_padding_is_a_multiple_of_what_was_asked_for_and_no_token_sees_it():
    batch = collator(packed=True, break_even=1e6, pad_to_multiple_of=8)(rows(5))
    assert batch["input_ids"].size(1) % 8 == 0
    assert (batch["labels"] != -100).sum() == sum(label != -100 for row in rows(5) for label in row["labels"][1:])


def test_rows_that_save_nothing_are_the_base_collators():
    examples = rows(1) * 4
    assert collator(packed=True, break_even=100.0)(examples).keys() == {"input_ids", "labels", "attention_mask"}
    assert collator(packed=False)(rows()).keys() == {"input_ids", "labels", "attention_mask"}


@pytest.mark.parametrize(
    ("architecture", "reason"), [("bloom", "reads several examples in a row differently"), ("mamba", "Mamba")]
)
def test_who_cannot_take_them_is_named(architecture, reason):
    packer = collator()
    assert reason in packer.allow(tiny_model(architecture))
    assert not packer.packed


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
def test_each_attention_of_transformers_takes_them(implementation):
    with torch.compiler.set_stance("force_eager"):  # flex_attention without minutes of compiling
        assert check_packed_rows(tiny_model("qwen2", attn_implementation=implementation)) is None
