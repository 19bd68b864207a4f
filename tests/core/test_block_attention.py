"""Attention that skips what the mask hides: the usual numbers and gradients, fewer scores, and transformers as it was found."""

import contextlib

import pytest
import torch

from trl_exbias.core import block_attention
from trl_exbias.core.block_attention import Tile, attention_by_blocks, tiles_of
from trl_exbias.core.layout import branch_attention_mask

from ..layouts import collator, random_examples
from ..tiny import tiny_model
from .test_packed_rows import collator as row_collator
from .test_packed_rows import loss_and_gradients, rows


CPU = torch.device("cpu")


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles for rows of a few tokens; the list that is returned receives the tiles of every mask."""
    found = []

    def noted(mask):
        found.append(tiles_of(mask))
        return found[-1]

    for name, value in (("_SHORTEST_ROW", 1), ("_TILE", 8), ("_SHORTEST_GAP", 2)):
        monkeypatch.setattr(block_attention, name, value)
    monkeypatch.setattr(block_attention, "tiles_of", noted)
    return found


def causal_mask(lengths: list[int]) -> torch.Tensor:
    """Sequences that do not see each other, in one row."""
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return ((ids[:, None] == ids) & torch.ones(len(ids), len(ids)).tril().bool())[None, None]


@pytest.mark.parametrize("as_float", [False, True])
def test_tiles_cover_all_that_is_seen_and_little_else(small_tiles, as_float):
    mask = torch.cat([causal_mask([20, 13, 7]), causal_mask([40])])
    given = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min) if as_float else mask
    tiles = tiles_of(given)
    for row, seen in zip(tiles, mask[:, 0], strict=True):
        covered = torch.zeros_like(seen)
        for tile in row:
            for part in tile.keys:
                covered[tile.queries, part] = True
        assert not (seen & ~covered).any()
    assert sum(tile.num_scores for tile in tiles[0]) < sum(tile.num_scores for tile in tiles[1]) < 0.75 * 40 * 40


def test_a_stretch_between_context_and_branch_is_skipped(small_tiles):
    mask = causal_mask([48])
    mask[..., 32:, 8:32] = False
    assert tiles_of(mask)[0][-1] == Tile(slice(40, 48), (slice(0, 8), slice(32, 48)))


def test_what_saves_nothing_is_left_to_one_call(small_tiles):
    assert tiles_of(torch.ones(1, 1, 32, 32, dtype=torch.bool)) is None
    hidden = causal_mask([32])
    hidden[..., 3, :] = False
    assert tiles_of(hidden) is None


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("qwen2", {}),
        ("gpt2", {}),
        ("mistral", {"sliding_window": 8}),
        ("gemma3", {"sliding_window": 8}),
    ],
)
def test_packed_rows_have_the_usual_loss_and_gradients(architecture, options, small_tiles):
    model = tiny_model(architecture, attn_implementation="sdpa", **options)
    batch = row_collator(packed=True, break_even=1e6)(rows())
    expected = loss_and_gradients(model, batch)
    assert not small_tiles
    with attention_by_blocks(CPU):
        found = loss_and_gradients(model, batch)
    # Once for each type of layer, not for each layer.
    assert len(small_tiles) == (2 if architecture == "gemma3" else 1)
    assert all(tiles is not None for tiles in small_tiles)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("checkpointed", [False, True])
def test_branches_have_the_usual_gradients(checkpointed, small_tiles):
    model = tiny_model("qwen2")
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    batch = collator().collate(random_examples(4), [[0, 1, 2, 3]])

    def gradients(attention) -> torch.Tensor:
        model.zero_grad()
        places = (batch["segment_ids"], batch["example_ids"], batch["position_ids"])
        with attention:
            logits = model(
                batch["input_ids"],
                attention_mask=branch_attention_mask(*places, model.config),
                position_ids=places[2],
                use_cache=False,
            ).logits
            logits.float().logsumexp(-1)[places[0] >= 0].sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    expected = gradients(contextlib.nullcontext())
    found = gradients(attention_by_blocks(CPU))
    assert len(small_tiles) == 1
    assert small_tiles[0] is not None
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_another_mask_in_the_same_place_is_not_taken_for_the_first(small_tiles):
    model = tiny_model("qwen2")
    tokens = torch.randint(200, (1, 40), generator=torch.Generator().manual_seed(0))
    for lengths in ([20, 20], [10, 30], [40]):
        expected = model(tokens, attention_mask=causal_mask(lengths)).logits
        with attention_by_blocks(CPU):
            model(tokens, attention_mask=causal_mask([5, 35]))
            torch.testing.assert_close(model(tokens, attention_mask=causal_mask(lengths)).logits, expected)
