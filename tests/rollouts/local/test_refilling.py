"""`sample` with free slots refilled from the queue: the reference's tokens, within the same memory, in fewer steps."""

import pytest
import torch

from trl_exbias.rollouts import SamplingOptions, TransformersEngine
from trl_exbias.rollouts.local import sessions

from ...reference import rollouts as reference
from ...rows import random_rows
from ...tiny import VOCAB_SIZE, tiny_model


STOPS = tuple(range(0, VOCAB_SIZE, 9))
OPTIONS = SamplingOptions(seed=5, max_new_tokens=8, stop_token_ids=STOPS)
# Room for three of the longest rows.
BUDGET = 80


class Session(sessions.RaggedSession):
    """Counts what it is asked to do."""

    def __init__(self, model, pad_token_id, rows, length):
        super().__init__(model, pad_token_id, rows, length)
        self.size, self.restarted, self.steps = rows * length, 0, 0
        made.append(self)

    def restart(self, rows, sequences):
        self.restarted += len(rows)
        super().restart(rows, sequences)

    def step(self, tokens, starts):
        self.steps += 1
        return super().step(tokens, starts)


made: list[Session] = []


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    made.clear()
    monkeypatch.setattr("trl_exbias.rollouts.local.engine.RaggedSession", Session)


@pytest.fixture(scope="module")
def prompts():
    """Prompts of 11 to 17 tokens, which may follow each other, and of one token, where nothing is left to read before a step."""
    return [*([*prompt, *range(10)] for prompt in random_rows(12, longest=8)[0]), *([i] for i in range(12))]


@pytest.mark.parametrize("architecture", ["qwen2", "mistral", "gemma2", "gpt2", "gpt_neo"])
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_tokens_are_the_references(architecture, temperature, prompts):
    model = tiny_model(architecture)
    options = SamplingOptions(seed=5, max_new_tokens=8, temperature=temperature, stop_token_ids=STOPS)
    found = TransformersEngine(model, 0, max_batch_tokens=BUDGET).sample(prompts, options)
    assert found == [reference.sample(model, prompt, options, i) for i, prompt in enumerate(prompts)]
    assert sum(session.restarted for session in made) >= 5


@pytest.mark.parametrize(("budget", "idle_share"), [(1, 0.0), (60, 0.0), (BUDGET, 0.25), (BUDGET, 0.5), (160, 0.25)])
def test_budget_order_and_idle_slots_change_nothing(budget, idle_share, prompts, monkeypatch):
    monkeypatch.setattr(sessions, "_IDLE_SHARE", {"cpu": idle_share})
    model = tiny_model()
    expected = TransformersEngine(model, 0, max_batch_tokens=10_000).sample(prompts, OPTIONS)
    assert sum(session.restarted for session in made) == 0
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(1)).tolist()
    progress = []
    engine = TransformersEngine(model, 0, budget, on_progress=lambda rows, tokens: progress.append((rows, tokens)))
    found = engine.sample([prompts[i] for i in order], OPTIONS, order)
    assert found == [expected[i] for i in order]
    assert sorted(progress) == sorted((1, len(row)) for row in found)
    assert sum(session.restarted for session in made) > 0
    longest = max(map(len, prompts)) + OPTIONS.max_new_tokens
    assert max(session.size for session in made[1:]) <= max(budget, longest)


@pytest.mark.parametrize(
    "options",
    [SamplingOptions(max_new_tokens=1), SamplingOptions(max_new_tokens=9, stop_token_ids=tuple(range(VOCAB_SIZE)))],
    ids=["limit", "stop"],
)
def test_rows_that_end_with_their_first_token_are_followed_by_all_others(options, prompts):
    model = tiny_model()
    found = TransformersEngine(model, 0, max_batch_tokens=BUDGET).sample(prompts, options)
    assert found == [reference.sample(model, prompt, options, i) for i, prompt in enumerate(prompts)]
    assert TransformersEngine(model, 0).sample([], options) == []


def test_a_long_row_does_not_keep_the_others_waiting():
    """Two slots: the long row takes 40 steps in one, and the short ones follow each other in the other."""
    model, prompts = tiny_model(), [[i, 1] for i in range(9)]
    options = SamplingOptions(seed=2, max_new_tokens=40, stop_token_ids=tuple(range(0, VOCAB_SIZE, 6)))
    found = TransformersEngine(model, 0, max_batch_tokens=84).sample(prompts, options)
    (session,) = made
    assert session.restarted == 7
    assert session.steps < 0.8 * sum(max(map(len, found[i : i + 2])) for i in range(0, 9, 2)), "batch after batch"


def test_much_shorter_rows_get_a_batch_with_more_slots(prompts):
    model, rows = tiny_model(), [[1] * 64, [2] * 64, [3] * 62, *([i] * 4 for i in range(12))]
    found = TransformersEngine(model, 0, max_batch_tokens=144).sample(rows, OPTIONS)
    assert found == TransformersEngine(model, 0).sample(rows, OPTIONS)
    shapes = [(session.length, session.size // session.length) for session in made[:2]]
    assert shapes == [(72, 2), (12, 11)]


@pytest.mark.parametrize("good_forwards", [0, 7])
def test_running_out_of_memory_continues_with_what_is_unfinished(good_forwards, prompts, caplog):
    model = tiny_model()
    expected = TransformersEngine(model, 0).sample(prompts, OPTIONS)
    forwards, progress, before = [], [], len(made)

    def run_out(module, args, kwargs):
        forwards.append(kwargs["input_ids"].size(0))
        if len(forwards) > good_forwards and forwards[-1] > 2:
            raise torch.OutOfMemoryError("no")

    model.model.register_forward_pre_hook(run_out, with_kwargs=True)
    engine = TransformersEngine(model, 0, BUDGET, on_progress=lambda rows, tokens: progress.append((rows, tokens)))
    assert engine.sample(prompts, OPTIONS) == expected
    assert "Out of memory with" in caplog.text
    assert sorted(progress) == sorted((1, len(row)) for row in expected)
    assert sum(session.restarted for session in made[before:]) > 0
