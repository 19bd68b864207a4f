"""Attention without copies of the cache: the usual numbers, nothing repeated, and transformers as it was found."""

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations import sdpa_attention

from trl_exbias.core.block_attention import attention_by_blocks
from trl_exbias.core.modeling import inference
from trl_exbias.rollouts.local import sessions
from trl_exbias.rollouts.local.attention import attention_without_copies

from ...tiny import tiny_model


CPU = torch.device("cpu")


def steps(model) -> torch.Tensor:
    """Two steps of three rows at different positions, one and then four tokens wide."""
    with inference(model):
        session = sessions.RaggedSession(model, 0, 3, 12)
        session.prefill([[1, 2, 3], [4], [5, 6, 7, 8, 9]])
        first = session.step(torch.tensor([[3], [4], [5]]), [3, 1, 5])
        return torch.cat([first, session.step(torch.tensor([[6, 7, 8, 9]] * 3), [4, 2, 3])], dim=1)


@pytest.mark.parametrize("architecture", ["qwen2", "mistral", "gemma2", "gpt2"])
def test_hidden_states_are_the_usual_ones(architecture, monkeypatch):
    model = tiny_model(architecture)
    found = steps(model)
    monkeypatch.setattr(
        sessions, "attention_without_copies", lambda device: attention_without_copies(torch.device("meta"))
    )
    torch.testing.assert_close(found, steps(model))


def test_keys_and_values_are_not_repeated_for_the_heads_that_share_them(monkeypatch):
    def repeat(*_):
        raise AssertionError("the cache is copied")

    monkeypatch.setattr(sdpa_attention, "repeat_kv", repeat)
    steps(tiny_model())
    model = tiny_model()
    tokens = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(AssertionError, match="copied"):
        model(tokens, attention_mask=torch.ones(1, 1, 4, 4, dtype=torch.bool))


@pytest.mark.parametrize("own_attention", [attention_without_copies, attention_by_blocks])
def test_transformers_is_left_as_it_was_found(own_attention):
    before = AttentionInterface()["sdpa"]
    with pytest.raises(KeyError, match="mine"), own_attention(CPU):
        assert AttentionInterface()["sdpa"] is not before
        raise KeyError("mine")
    assert AttentionInterface()["sdpa"] is before
    with own_attention(torch.device("meta")):
        assert AttentionInterface()["sdpa"] is before
