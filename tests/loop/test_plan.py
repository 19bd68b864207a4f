import math

from hypothesis import given
from hypothesis import strategies as st

from trl_exbias.loop.plan import JOINT, SFT, Phase, RunPlan


def plan(phases, batch_size=4, accumulation=1, max_steps=-1) -> RunPlan:
    return RunPlan(phases, lambda rows: math.ceil(rows / batch_size), accumulation, max_steps)


def test_phases_of_different_length_lie_on_one_axis():
    """16, 24 and 8 rows in batches of 4, two batches an update: 2, 3 and 1 updates."""
    made = plan([Phase(0, 1, 16), Phase(1, 2, 24), Phase(2, 1, 8)], accumulation=2)
    assert [(e.phase, e.iteration, e.first_step, e.num_updates, e.num_batches) for e in made.epochs] == [
        (SFT, 0, 0, 2, 4),
        (JOINT, 1, 2, 3, 6),
        (JOINT, 1, 5, 3, 6),
        (JOINT, 2, 8, 1, 2),
    ]
    assert made.total_steps == 9
    assert made.segments() == [(0, 2), (2, 6), (8, 1)]


def test_a_fractional_epoch_is_shortened():
    made = plan([Phase(0, 0.5, 40), Phase(1, 1.25, 40)])
    assert [(e.iteration, e.num_updates, e.num_batches) for e in made.epochs] == [(0, 5, 5), (1, 10, 10), (1, 3, 3)]


def test_an_incomplete_last_accumulation_window_counts():
    made = plan([Phase(0, 1, 20)], accumulation=2)
    assert [(e.num_updates, e.num_batches) for e in made.epochs] == [(3, 5)]


def test_no_sft_phase():
    assert [e.iteration for e in plan([Phase(0, 0, 8), Phase(1, 1, 8)]).epochs] == [1]


def test_max_steps_cuts_a_longer_plan():
    made = plan([Phase(0, 1, 16), Phase(1, 1, 16)], max_steps=6)
    assert made.total_steps == 6
    assert [(e.iteration, e.num_updates) for e in made.epochs] == [(0, 4), (1, 2)]


def test_max_steps_prolongs_the_last_phase_of_a_shorter_plan():
    made = plan([Phase(0, 1, 16), Phase(1, 1, 16)], max_steps=13)
    assert [(e.iteration, e.num_updates) for e in made.epochs] == [(0, 4), (1, 4), (1, 4), (1, 1)]


@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 50)), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(-1, 60),
)
def test_every_step_lies_in_exactly_one_epoch(phases, accumulation, max_steps):
    made = plan([Phase(i, *phase) for i, phase in enumerate(phases)], accumulation=accumulation, max_steps=max_steps)
    expected = 0
    for epoch in made.epochs:
        assert epoch.first_step == expected and epoch.num_updates > 0
        assert math.ceil(epoch.num_batches / accumulation) == epoch.num_updates
        expected = epoch.last_step
    assert made.total_steps == expected
    if max_steps > 0:
        assert made.total_steps == max_steps
    for step in range(made.total_steps):
        index, done = made.locate(step)
        assert made.epochs[index].first_step + done == step and done < made.epochs[index].num_updates
    assert made.locate(made.total_steps) == (len(made.epochs), 0)


def test_an_iteration_that_ends_early_moves_the_later_ones_up():
    plan = RunPlan([Phase(0, 1, 8), Phase(1, 3, 8), Phase(2, 2, 8)], lambda rows: rows, 2)
    assert plan.total_steps == 4 + 12 + 8
    assert plan.end_iteration(1, 4 + 6) == 6
    assert [(e.iteration, e.first_step, e.num_updates, e.num_batches) for e in plan.epochs] == [
        (0, 0, 4, 8),
        (1, 4, 4, 8),
        (1, 8, 2, 4),
        (2, 10, 4, 8),
        (2, 14, 4, 8),
    ]
    assert [plan.iteration_at(step) for step in (0, 4, 5, 10, 11, 18)] == [0, 0, 1, 1, 2, 2]
    assert plan.first_step(2) == 10


def test_an_iteration_that_ends_where_it_was_planned_to_loses_nothing():
    plan = RunPlan([Phase(1, 2, 8), Phase(2, 1, 8)], lambda rows: rows, 1)
    before = list(plan.epochs)
    assert plan.end_iteration(1, 16) == 0
    assert plan.epochs == before
