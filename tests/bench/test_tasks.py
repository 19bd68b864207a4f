"""The tasks' true distributions, against enumeration of everything that could have been."""

import itertools

import pytest
import torch

from trl_exbias.bench.tasks import NODES, STATES, SUCCESSORS, TASKS


ROWS = 64


@pytest.mark.parametrize("name", TASKS)
def test_true_distributions_are_distributions_and_do_not_rule_out_gold(name):
    task = TASKS[name]
    rows = task.make(ROWS, seed=1)
    for true in (task.true_after_gold(rows), task.true_after_own(rows, rows.responses)):
        assert true.shape == (*rows.responses.shape, task.num_answer_words)
        torch.testing.assert_close(true.sum(-1), torch.ones(rows.responses.shape))
        assert (true.gather(2, rows.responses.unsqueeze(2)) > 0).all()
    assert task.is_right(rows, rows.responses).all()


@pytest.mark.parametrize("name", TASKS)
def test_rows_come_from_their_seed(name):
    first, again, other = (TASKS[name].make(ROWS, seed) for seed in (1, 1, 2))
    assert torch.equal(first.prompts, again.prompts) and torch.equal(first.responses, again.responses)
    assert not torch.equal(first.responses, other.responses)


def test_what_a_prompt_of_fix_says_is_bayes_rule_over_all_starts():
    task, accuracy = TASKS["fix"], 0.6
    rows = task.make(8, seed=3)
    true = task.true_after_own(rows, rows.responses)
    for row, prompt in enumerate(rows.prompts[:, :-1].tolist()):
        steps, landmarks = [(p - STATES) // STATES for p in prompt], [(p - STATES) % STATES for p in prompt]
        weights = []
        for start in range(STATES):
            states = [(start + total) % STATES for total in itertools.accumulate(steps)]
            weight = 1.0
            for state, landmark in zip(states, landmarks, strict=True):
                weight *= accuracy * (state == landmark) + (1 - accuracy) / STATES
            weights.append((states, weight))
        total = sum(weight for _, weight in weights)
        for place in range(len(steps)):
            expected = [sum(w for states, w in weights if states[place] == s) / total for s in range(STATES)]
            torch.testing.assert_close(true[row, place], torch.tensor(expected))


def test_behind_gold_the_next_state_is_certain_but_for_the_first():
    rows = TASKS["fix"].make(ROWS, seed=4)
    true = TASKS["fix"].true_after_gold(rows)
    assert (true[:, 1:].max(-1).values == 1).all()
    assert true[:, 0].max(-1).values.min() < 1
    assert (TASKS["known-start"].true_after_gold(TASKS["known-start"].make(ROWS, 4)).max(-1).values == 1).all()


def test_without_landmarks_a_prompt_says_nothing_of_the_states():
    task = TASKS["no-landmarks"]
    rows = task.make(ROWS, seed=5)
    torch.testing.assert_close(
        task.true_after_own(rows, rows.responses), torch.full((*rows.responses.shape, STATES), 1 / STATES)
    )


def test_a_walk_continues_from_whatever_token_was_drawn():
    task = TASKS["walk"]
    rows = task.make(ROWS, seed=6)
    own = torch.randint(NODES, rows.responses.shape, generator=torch.Generator().manual_seed(0))
    own[0, 3] = NODES + 2  # no node at all
    true = task.true_after_own(rows, own)
    support = (true > 0).sum(-1)
    assert support[0, 4] == NODES and not task.is_right(rows, own)[0, 3]
    assert (support.flatten()[torch.arange(support.numel()) != 4] == SUCCESSORS).all()
    # The first token of an own response continues the prompt, as gold's does.
    torch.testing.assert_close(true[:, 0], task.true_after_gold(rows)[:, 0])
    right = task.is_right(rows, own)
    assert torch.equal(right[1:], true[1:].gather(2, own[1:].unsqueeze(2)).squeeze(2) > 0)
