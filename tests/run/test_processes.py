"""Work is dealt out so that all are done together."""

from hypothesis import given
from hypothesis import strategies as st

from trl_exbias.run.processes import longest_first


@given(st.lists(st.integers(1, 1000), max_size=60), st.integers(1, 8))
def test_every_piece_is_dealt_once_and_loads_differ_by_a_piece_at_most(costs, shares):
    dealt = longest_first(costs, shares)
    assert sorted(piece for share in dealt for piece in share) == list(range(len(costs)))
    loads = [sum(costs[piece] for piece in share) for share in dealt]
    assert max(loads) - min(loads) <= max(costs, default=0)


def test_the_longest_shards_are_not_all_the_first_process_s():
    """Shards come longest first: dealt in turn, the first process would always have the longer one of a pair."""
    costs = list(range(16, 0, -1))
    loads = [sum(costs[piece] for piece in share) for share in longest_first(costs, 2)]
    assert loads == [68, 68]
    assert [sum(costs[i::2]) for i in range(2)] == [72, 64]
