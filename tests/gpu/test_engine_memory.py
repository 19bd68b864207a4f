"""The transformers engine's memory: given back after each call, and fewer rows at once when it runs out."""

import logging

import pytest
import torch

from trl_exbias.rollouts import SamplingOptions, TransformersEngine

from ..rows import masks_for, random_rows
from .device import DEVICE, on_gpu_or_cpu
from .memory import metered
from .models import mid_policy, more_precise
from .ties import Judge, assert_equal_but_for_ties


pytestmark = pytest.mark.quick_on_cpu

OPTIONS = SamplingOptions(seed=9, max_new_tokens=on_gpu_or_cpu(24, 12))
GREEDY = SamplingOptions(temperature=0.0)
BUDGET = on_gpu_or_cpu(16384, 1024)


@pytest.fixture(scope="module")
def rows():
    """Enough for one full batch."""
    prompts, references = random_rows(on_gpu_or_cpu(256, 32), seed=1, longest=on_gpu_or_cpu(64, 24))
    return prompts, [reference or [1] for reference in references]


@pytest.fixture
def metered_policy():
    with metered() as meter:
        yield meter, mid_policy()


def test_memory_is_given_back_after_every_call(metered_policy, rows):
    meter, policy = metered_policy
    engine, masks = TransformersEngine(policy, 0, max_batch_tokens=BUDGET), masks_for(rows[1], 0.4)
    calls = {
        "sample": lambda: engine.sample(rows[0], OPTIONS),
        "mix": lambda: engine.mix(*rows, masks, OPTIONS),
        "label": lambda: engine.label(*rows),
    }
    for call in calls.values():
        call()  # libraries take their workspaces at first use, and keep them
    for verb, call in calls.items():
        before = meter.live()
        meter.reset_peak()
        call()
        assert meter.peak() > before, verb
        assert meter.live() == before, verb


def test_memory_is_given_back_after_an_exception(metered_policy, rows):
    meter, policy = metered_policy
    engine = TransformersEngine(policy, 0, max_batch_tokens=BUDGET)
    engine.sample(rows[0], OPTIONS)
    before, forwards = meter.live(), []

    def fail(*_):
        forwards.append(1)
        if len(forwards) == 4:
            raise KeyError("mine")

    handle = policy.model.layers[1].register_forward_hook(fail)
    with pytest.raises(KeyError, match="mine"):
        engine.sample(rows[0], OPTIONS)
    handle.remove()
    assert meter.live() == before


@pytest.mark.parametrize("verb", ["sample", "mix", "label"])
def test_when_memory_runs_out_half_a_batch_gives_the_same_tokens(metered_policy, rows, verb, caplog):
    """The batch is given less memory than it has just been seen to take: an allocation really fails."""
    meter, policy = metered_policy
    masks, progress = masks_for(rows[1], 0.4), []
    judge = Judge(more_precise(policy), lambda ids: policy(ids).logits)
    arguments = {"sample": (rows[0], OPTIONS), "mix": (*rows, masks, OPTIONS), "label": rows}[verb]
    engine = TransformersEngine(policy, 0, max_batch_tokens=BUDGET)
    getattr(engine, verb)(*arguments)
    before = meter.live()
    meter.reset_peak()
    expected = getattr(engine, verb)(*arguments)
    needed = meter.peak() - before
    assert engine.max_batch_tokens == BUDGET
    engine.on_progress = lambda sequences, tokens: progress.append(sequences)

    def same(found: list[list[int]]) -> None:
        # Other batches round otherwise, and of tens of thousands of draws one may be a tie in float32.
        options, along = (GREEDY, rows[1]) if verb == "label" else (OPTIONS, None)
        assert_equal_but_for_ties(judge, found, expected, rows[0], options, along)

    with meter.limited(int(0.7 * needed)), caplog.at_level(logging.WARNING):
        found = getattr(engine, verb)(*arguments)
    same(found)
    assert BUDGET / 8 <= engine.max_batch_tokens < BUDGET
    assert "Out of memory with" in caplog.text and "tokens a batch" in caplog.text
    assert sum(progress) == len(rows[0]), "a row that ran twice is reported once"
    assert meter.live() == before
    same(getattr(engine, verb)(*arguments))
    assert engine.max_batch_tokens < BUDGET, "the lower budget is kept"


def test_a_single_sequence_that_does_not_fit_is_an_error_that_says_what_to_do(metered_policy):
    meter, policy = metered_policy
    engine = TransformersEngine(policy, 0)
    engine.sample([[1] * 8], OPTIONS)
    before = meter.live()
    length = on_gpu_or_cpu(20_000, 2_000)
    with (
        meter.limited(on_gpu_or_cpu(32 << 20, 1 << 20)),
        pytest.raises(RuntimeError, match="single sequence of .* tokens"),
    ):
        engine.label([[1] * 8], [torch.randint(100, (length,)).tolist()])
    assert meter.live() == before
    assert not any(parameter.device.type != DEVICE.type for parameter in policy.parameters())
