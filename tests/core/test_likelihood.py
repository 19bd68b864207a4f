"""Likelihoods of several labels from one pass, against one at a time."""

import pytest
import torch

from trl_exbias.core.likelihood import label_nll, several_nll

from ..tiny import tiny_model


def test_several_labels_from_one_pass_are_those_of_one_at_a_time(monkeypatch):
    monkeypatch.setattr("trl_exbias.core.reading._CHUNK_ELEMENTS", 1000)  # several chunks of logits
    model = tiny_model()
    contexts, continuations = [[1, 2, 3], [4], [5, 6]], [[7, 8], [], [9, 10, 11, 12]]
    first, second = [[3, 4], [], [5, 6, 7, 8]], [[8, 8], [], [1, 2, 3, 4]]
    found, best = several_nll(model, contexts, continuations, [first, second], 0, max_batch_tokens=7)
    for labels, nll in zip((first, second), found, strict=True):
        expected = label_nll(model, contexts, continuations, labels, 0)
        assert list(map(len, nll)) == [2, 0, 4]
        for row, expected_row in zip(nll, expected, strict=True):
            assert row == pytest.approx(expected_row, abs=1e-5)
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 9, 10, 11]])).logits[0, 1:]
    assert best[2] == pytest.approx((-logits.log_softmax(-1).max(-1).values).tolist(), abs=1e-5)
