"""Recurrent and hybrid models, whose caches are of many kinds: the tokens of one sequence alone, read whole for each token."""

import logging
from functools import cache

import pytest
import torch

from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.core.likelihood import label_nll
from trl_exbias.core.modeling import inference
from trl_exbias.evaluation.exposure_bias import exposure_bias
from trl_exbias.rollouts import SamplingOptions, TransformersEngine
from trl_exbias.rollouts.local.cache_probe import Rows, rows_of

from ...families import RECURRENT, family
from ...loop.runs import config, logged, trainer
from ...reference import rollouts as reference
from ...tiny import VOCAB_SIZE, conversations, tiny_model
from .test_engine import masks_for, random_rows


# One of each way to be continued, and of each kind of cache; the others are as these are.
USUAL = ("mamba", "lfm2", "qwen3_5", "recurrent_gemma", "rwkv")
FAMILIES = [name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in RECURRENT]
STOPS = tuple(range(0, VOCAB_SIZE, 9))
OPTIONS = SamplingOptions(seed=5, max_new_tokens=8, stop_token_ids=STOPS)

shared_family = cache(family)


@pytest.fixture(scope="module")
def rows():
    prompts, references = random_rows(5, longest=14)
    # Two of one length go together, where only such can; one is shorter than a convolution's kernel.
    prompts[1], prompts[2] = prompts[1][:3], prompts[0][::-1]
    return prompts, references


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_that_end_at_different_lengths_are_the_references(name, rows):
    model = shared_family(name)
    found = TransformersEngine(model, 0).sample(rows[0], OPTIONS)
    assert found == [reference.sample(model, prompt, OPTIONS, i) for i, prompt in enumerate(rows[0])]
    assert len(set(map(len, found))) > 1


@pytest.mark.parametrize("name", FAMILIES)
def test_mixes_are_the_sequential_algorithms(name, rows):
    model, masks = shared_family(name), masks_for(rows[1], 0.4)
    found = TransformersEngine(model, 0).mix(*rows, masks, OPTIONS)
    assert found == [reference.mix(model, *row, OPTIONS, i) for i, row in enumerate(zip(*rows, masks, strict=True))]
    assert found != rows[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_and_likelihoods_do_not_see_the_padding(name, rows):
    model = shared_family(name)
    expected = [reference.label(model, *row) for row in zip(*rows, strict=True)]
    assert TransformersEngine(model, 0).label(*rows) == expected
    nll = label_nll(model, *rows, rows[1], 0)
    for context, continuation, found in zip(*rows, nll, strict=True):
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([context + continuation])).logits[0].log_softmax(-1)
        places = range(len(context) - 1, len(context) + len(continuation) - 1)
        alone = [-log_probs[i, token].item() for i, token in zip(places, continuation, strict=True)]
        assert found == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"), [("mamba", Rows.ALIKE), ("qwen3_5", Rows.ALIKE), ("recurrent_gemma", Rows.REREAD)]
)
def test_what_a_model_cannot_do_is_found_and_said_once(name, expected, caplog):
    model = family(name)
    with inference(model), caplog.at_level(logging.WARNING):
        random_state = torch.get_rng_state()
        assert rows_of(model, 10) is expected
        assert rows_of(model, 10) is expected
        assert torch.equal(torch.get_rng_state(), random_state)
    assert caplog.text.count("does not take a batch of rows at different positions") == 1
    assert ("reads the sequences from their start" in caplog.text) == (expected is Rows.REREAD)


def test_a_plain_model_takes_rows_at_any_position(caplog):
    model = tiny_model()
    with inference(model):
        assert rows_of(model, 10) is Rows.RAGGED
    assert not caplog.text


@pytest.mark.parametrize("name", ["mamba", "recurrent_gemma"])
def test_free_runs_score_what_a_forward_over_the_prefix_gives(name):
    """Contexts of one length: each start is copied into lanes, which the cache has to follow."""
    model, document = shared_family(name), random_rows(1, seed=3, longest=40)[0][0] * 3
    starts = range(0, 24 - 10 + 1, 4)
    measured = exposure_bias(model, [document[:24]], context_length=6, horizon=4, num_samples=2, seed=1, stride=4)
    for step in range(4):
        places = [start + 6 + step for start in starts]
        alone = [-log_prob(model, document[place - 6 - step : place], document[place]) for place in places]
        assert measured.teacher_forced[step] == pytest.approx(sum(alone) / len(alone), abs=1e-4)
    assert measured.free_running[0] == pytest.approx(measured.teacher_forced[0])


def log_prob(model, prefix: list[int], token: int) -> float:
    with torch.no_grad():
        return model(input_ids=torch.tensor([prefix])).logits[0, -1].log_softmax(-1)[token].item()


@pytest.mark.parametrize("name", ["mamba", "recurrent_gemma", *(p for p in FAMILIES if not isinstance(p, str))])
def test_a_padded_batch_trains_on_the_loss_of_its_rows(name, tmp_path):
    """Through TRL's fused head, which does not know RecurrentGemma's and xLSTM's caps by itself."""
    own = {"router_aux_loss_coef": 0.0}
    done = trainer(BASHTrainer, config(BASHConfig, tmp_path, beta=0.3, **own), conversations(8), family(name))
    model = family(name)
    batch = next(iter(done.get_train_dataloader()))
    nll = []
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        with torch.no_grad():
            log_probs = model(input_ids=ids[None, : mask.sum()]).logits[0].log_softmax(-1)
        nll += [-log_probs[j - 1, labels[j]].item() for j in range(1, mask.sum()) if labels[j] != -100]
    done.train()
    assert not batch["attention_mask"].all(), "rows of different length are what is tested"
    assert logged(done, "loss")[0] == pytest.approx(sum(nll) / len(nll), rel=1e-4)
    assert len(logged(done, "loss/mixed")) == 2


def test_rwkvs_weights_are_the_trained_ones_after_a_rollout(rows):
    model = family("rwkv").train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    TransformersEngine(model, 0).sample(rows[0], OPTIONS)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
