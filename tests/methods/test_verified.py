"""Verified answers against their definition: which are sampled, which are kept, and what is trained on them."""

import shutil
import string

import pytest
import torch

from trl_exbias import VerifiedAnswersConfig, VerifiedAnswersTrainer
from trl_exbias.core.data import Example
from trl_exbias.rollouts.noise import derive_seed, sample_ids
from trl_exbias.run.errors import RunStoppedError
from trl_exbias.run.rollout_store import RolloutStore

from ..loop.runs import config, logged, trainer, weights
from ..reference import losses as reference_losses
from ..reference import rollouts as reference_rollouts
from ..tiny import VOCAB_SIZE, conversations, plain_pairs, tiny_model
from . import accepting


LONG = "tests.methods.accepting:long"


def stopping_model():
    """A third of all tokens end its answers."""
    model = tiny_model()
    model.generation_config.eos_token_id = [*range(0, VOCAB_SIZE, 3)]
    return model


def run(tmp_path, dataset=None, model=None, resume=None, **options) -> VerifiedAnswersTrainer:
    options = {"max_new_tokens": 8, "num_samples": 4, "verifier": LONG, "sft_epochs": 0, **options}
    args = config(VerifiedAnswersConfig, tmp_path, per_device_train_batch_size=8, **options)
    done = trainer(VerifiedAnswersTrainer, args, dataset or conversations(8), model or stopping_model())
    done.train(resume_from_checkpoint=resume)
    return done


def kept(done, iteration: int = 1) -> dict[int, list[list[int]]]:
    rows = RolloutStore(f"{done.args.output_dir}/rollouts/iteration-{iteration}").read().to_list()
    found: dict[int, list[list[int]]] = {}
    for row in rows:
        assert row["kind"] == "own" and row["labels"] == row["input_ids"]
        found.setdefault(row["example_id"], []).append(row["input_ids"])
    return found


@pytest.mark.parametrize("data", [conversations, plain_pairs])
@pytest.mark.parametrize("num_kept", [None, 1])
def test_samples_selection_loss_and_metrics_equal_the_reference(tmp_path, data, num_kept):
    done = run(tmp_path, data(8), num_kept=num_kept)
    options = done.sampling_options(derive_seed(done.args.seed, "rollouts", 1))
    rows, expected, accepted, distinct = [], {}, 0, 0
    for index, row in enumerate(done.train_dataset):
        example, texts = Example.from_row(index, row), {}
        for key in sample_ids([index], 4):
            z = reference_rollouts.sample(stopping_model(), example.context_ids, options, key)
            text = done._tokenizer.decode(z, skip_special_tokens=True).strip()
            if z[-1] % 3 == 0 and text and accepting.long(text, "", {}):
                accepted += 1
                texts.setdefault(text, z)
        distinct += len(texts)
        if texts:
            expected[index] = [*texts.values()][:num_kept]
        rows.append((example.context_ids, example.response_ids, expected.get(index, [])))
    assert kept(done) == expected and len(expected) > 0
    loss = reference_losses.verified(tiny_model(), rows)
    assert logged(done, "loss")[0] == pytest.approx(loss.item(), rel=1e-4)
    assert logged(done, "verified/acceptance_rate") == [accepted / 32]
    assert logged(done, "verified/pass_at_n") == [len(expected) / 8]
    assert logged(done, "verified/distinct_answers") == [distinct / 8]
    assert logged(done, "verified/kept_answers") == [sum(map(len, expected.values())) / 8]


def test_without_gold_and_a_verifier_it_is_simple_self_distillation(tmp_path):
    done = run(tmp_path, verifier="none", sft_weight=0.0, num_samples=1, model=tiny_model(), temperature=0.7)
    rows = [(Example.from_row(i, row).context_ids, [], kept(done)[i]) for i, row in enumerate(done.train_dataset)]
    assert all(len(answers[0]) == 8 for *_, answers in rows), "cut off, and kept"
    loss = reference_losses.verified(tiny_model(), rows)
    assert logged(done, "loss")[0] == pytest.approx(loss.item(), rel=1e-4)
    assert logged(done, "verified/acceptance_rate") == []


def test_more_samples_leave_the_first_ones_as_they_are():
    few, many = sample_ids([3, 9], 2), sample_ids([3, 9], 5)
    assert few == [many[0], many[1], many[5], many[6]] and (many[0], many[5]) == (3, 9)
    assert len({*many, *sample_ids(range(1000), 5)}) == 5000, "no two keys are the same"


def test_a_resumed_run_ends_in_the_same_weights(tmp_path):
    options = {"num_iterations": 2, "num_train_epochs": 1, "save_strategy": "epoch"}
    whole = run(tmp_path / "whole", **options)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoint-2")
    shutil.rmtree(tmp_path / "part" / "rollouts" / "iteration-2")
    resumed = run(tmp_path / "part", resume=True, **options)
    assert kept(resumed, 2) == kept(whole, 2)
    assert torch.equal(weights(resumed), weights(whole))


def test_answers_that_do_not_end_or_do_not_fit_are_not_verified(tmp_path):
    with pytest.raises(RunStoppedError, match="with `sft_weight=0` there is nothing to train on"):
        run(tmp_path / "a", model=tiny_model(), sft_weight=0.0)
    longest = max(len(row["input_ids"]) for row in run(tmp_path / "b").train_dataset)
    done = run(tmp_path / "c", max_length=longest)
    for index, answers in kept(done).items():
        context = Example.from_row(index, done.train_dataset[index]).context_ids
        assert all(len(context) + len(z) <= longest and z[-1] % 3 == 0 for z in answers)


def test_an_answer_that_a_string_ends_is_whole_and_is_verified_without_it(tmp_path):
    """The string is learned with it, as the end of a turn is."""
    strings = [*string.ascii_uppercase]
    done = run(tmp_path, model=tiny_model(), verifier="tests.methods.accepting:without_capitals", stop_strings=strings)
    options, accepted, expected = done.sampling_options(derive_seed(done.args.seed, "rollouts", 1)), 0, {}
    for index, row in enumerate(done.train_dataset):
        context, texts = Example.from_row(index, row).context_ids, {}
        for key in sample_ids([index], 4):
            z = reference_rollouts.sample(tiny_model(), context, options, key, done._tokenizer)
            *said, last = done._tokenizer.decode(z)
            if last in strings and "".join(said).strip():
                accepted += 1
                texts.setdefault("".join(said).strip(), z)
        if texts:
            expected[index] = [*texts.values()]
    assert kept(done) == expected and accepted > 1
    assert logged(done, "verified/acceptance_rate") == [accepted / 32]


def test_an_iteration_without_accepted_answers_says_so(tmp_path, caplog):
    done = run(tmp_path, model=tiny_model())
    assert "No answer of the policy's was accepted: this iteration trains on gold alone" in caplog.text
    assert logged(done, "verified/acceptance_rate") == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"verifier": None}, "`verifier` is required"),
        ({"verifier": "gsm"}, "`verifier` must be one of none, exact, gsm8k, number, math, 'regex:PATTERN'"),
        ({"num_samples": 0}, "`num_samples` must be at least 1, got 0"),
        ({"num_kept": 5}, r"`num_kept` must be from 1 to `num_samples` \(4\), or None for all, got 5"),
        ({"temperature": 0.0}, "`num_samples=4` at `temperature=0` is the same answer each time"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be at least 1"),
    ],
)
def test_bad_settings_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(VerifiedAnswersConfig, tmp_path, **{"verifier": "exact", **options})


def test_a_verifier_that_refuses_gold_is_found_before_the_model_is_loaded(tmp_path):
    args = config(VerifiedAnswersConfig, tmp_path, verifier="gsm8k")
    with pytest.raises(ValueError, match="`verifier='gsm8k'` accepts 0 of the first 8 gold answers. Row 0, for one"):
        trainer(VerifiedAnswersTrainer, args, conversations(8), "no/such/model")
