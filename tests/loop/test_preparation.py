"""The data that a trainer is given, in whatever form, name and format, and the rows that it makes of them."""

import logging

import pytest
from datasets import Dataset
from tokenizers import processors

from trl_exbias import (
    BASHConfig,
    BASHTrainer,
    DaDDaggerConfig,
    DaDDaggerTrainer,
    RACConfig,
    RACTrainer,
    SPINConfig,
    SPINTrainer,
)

from ..tiny import VOCAB_SIZE, byte_tokenizer, plain_pairs, tiny_model
from .runs import config, logged, trainer


TOKENS = Dataset.from_dict({"input_ids": [[2, 3, 4, 5, 6, 1]] * 4, "labels": [[-100, -100, 4, 5, 6, 1]] * 4})
LONG = Dataset.from_list([{"prompt": "p" * 9, "completion": "c"}, {"prompt": "p" * 40, "completion": "c"}])
TEXT = Dataset.from_list([{"text": "abcdefg"}, {"text": "bcdefgh"}])
LONG_CHAT = Dataset.from_list(
    [{"messages": [{"role": "user", "content": "p" * 40}, {"role": "assistant", "content": "c"}]}] * 2
)
DAD = {"alpha": 1.0, "context_length": 4, "rollout_length": 3, "iteration_patience": None}


def made(tmp_path, dataset, trainer_class=BASHTrainer, config_class=BASHConfig, model=None, given=None, **options):
    """A trainer that does not train; `given` are further arguments of it, `options` of its config."""
    return trainer(trainer_class, config(config_class, tmp_path, **options), dataset, model, **(given or {}))


def rows(dataset: Dataset) -> list[dict]:
    return dataset.select_columns(["input_ids", "labels", "context_length"]).to_list()


def test_rows_at_which_trl_fails_are_named_where_nothing_rolls_out(tmp_path):
    data = Dataset.from_list([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}])
    with pytest.raises(
        ValueError, match=r"1 of 2 rows of the data set `train` have an empty response .*\(rows 1\)"
    ) as error:
        made(tmp_path, data, num_iterations=0)
    assert isinstance(error.value.__cause__, AttributeError)


@pytest.mark.parametrize("labels", [True, False])
def test_what_trl_is_told_not_to_prepare_is_prepared_all_the_same(tmp_path, labels):
    data = TOKENS if labels else TOKENS.remove_columns("labels")
    skipped = made(
        tmp_path, data, dataset_kwargs={"skip_prepare_dataset": True}, given={"eval_dataset": {"train": data}}
    )
    assert rows(skipped.train_dataset) == rows(made(tmp_path, data).train_dataset)
    assert skipped.evaluate()["eval_train_loss"] > 0


def test_what_trl_is_told_not_to_prepare_trains(tmp_path):
    done = made(tmp_path, TOKENS, dataset_kwargs={"skip_prepare_dataset": True}, sft_epochs=0)
    done.train()
    assert len(logged(done, "loss/mixed")) == 1


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (plain_pairs(2), "is not tokenised"),
        (TOKENS.rename_column("labels", "completion_mask"), "no labels are made of completion_mask"),
    ],
)
def test_what_trl_is_told_not_to_prepare_must_be_ready(tmp_path, dataset, message):
    with pytest.raises(ValueError, match=rf"`skip_prepare_dataset` leaves the training dataset as it is.* {message}"):
        made(tmp_path, dataset, dataset_kwargs={"skip_prepare_dataset": True})


def test_trajectories_are_cut_of_what_trl_is_told_not_to_prepare(tmp_path):
    skip = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    found, expected = (made(tmp_path, TOKENS, DaDDaggerTrainer, DaDDaggerConfig, **DAD, **more) for more in (skip, {}))
    assert rows(found.train_dataset) == rows(expected.train_dataset)


@pytest.mark.parametrize("dataset", [TOKENS, TEXT, plain_pairs(4)])
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_a_format_changes_nothing(tmp_path, dataset, kind):
    formatted = made(tmp_path, dataset.with_format(kind), given={"eval_dataset": dataset.with_format(kind)})
    plain = made(tmp_path, dataset, given={"eval_dataset": dataset})
    assert rows(formatted.train_dataset) == rows(plain.train_dataset)
    assert formatted.eval_dataset[0] == plain.eval_dataset[0]


def test_a_formatted_data_set_trains(tmp_path):
    made(tmp_path, TEXT.with_format("numpy"), sft_epochs=0).train()


def test_columns_of_our_names_break_nothing(tmp_path, caplog):
    more = {"branches": "b", "soft_labels": 1.0, "exbias_row": 7, "context_length": 1, "labels": 3, "prompt_ids": [1]}
    data = plain_pairs(4).map(lambda row: more)
    done = made(tmp_path, data, sft_epochs=0, given={"eval_dataset": data})
    done.train()
    assert rows(done.train_dataset) == rows(made(tmp_path / "plain", plain_pairs(4)).train_dataset)
    assert "training dataset has columns" in caplog.text and "evaluation dataset has columns" in caplog.text


@pytest.mark.parametrize(
    ("trainer_class", "config_class", "options"),
    [(BASHTrainer, BASHConfig, {}), (DaDDaggerTrainer, DaDDaggerConfig, DAD)],
)
def test_what_a_formatting_function_makes_is_checked(tmp_path, trainer_class, config_class, options):
    given = {"formatting_func": lambda row: row["text"].upper() if row["n"] else None}
    data = TEXT.add_column("n", [1, 0])
    with pytest.raises(ValueError, match=r"1 of 2 training rows have .* `text` \(rows 1\)"):
        made(tmp_path, data, trainer_class, config_class, given=given, **options)
    formatted = made(tmp_path, data.select([0]), trainer_class, config_class, given=given, **options)
    plain = Dataset.from_list([{"text": TEXT[0]["text"].upper()}])
    assert rows(formatted.train_dataset) == rows(
        made(tmp_path, plain, trainer_class, config_class, **options).train_dataset
    )


class TestEvaluationSets:
    @pytest.mark.parametrize(
        ("trainer_class", "config_class", "options"),
        [(BASHTrainer, BASHConfig, {}), (DaDDaggerTrainer, DaDDaggerConfig, DAD)],
    )
    def test_one_may_be_called_train_and_have_another_form(self, tmp_path, trainer_class, config_class, options):
        given = {"eval_dataset": {"train": TEXT, "test": plain_pairs(4)}}
        done = made(tmp_path, plain_pairs(4), trainer_class, config_class, given=given, rollout_turns="all", **options)
        metrics = done.evaluate()
        assert metrics["eval_train_loss"] > 0 and metrics["eval_test_loss"] > 0
        again = done.evaluate({"train": TEXT, "test": plain_pairs(4)})
        assert again["eval_train_loss"] == metrics["eval_train_loss"]
        assert again["eval_test_loss"] == metrics["eval_test_loss"]

    @pytest.mark.parametrize(
        ("trainer_class", "config_class", "options"),
        [
            (BASHTrainer, BASHConfig, {}),
            (SPINTrainer, SPINConfig, {"max_new_tokens": 4}),
            (DaDDaggerTrainer, DaDDaggerConfig, {**DAD, "iteration_patience": 1}),
        ],
    )
    def test_rows_that_truncation_empties_are_refused_by_name(self, tmp_path, trainer_class, config_class, options):
        given = {"eval_dataset": {"a": plain_pairs(2), "b": LONG}}
        message = r"1 of 2 rows of the evaluation set `b` have no response token within `max_length=24`.*\(rows 1\)"
        options |= {"metric_for_best_model": "a_loss"} if options.get("iteration_patience") else {}
        with pytest.raises(ValueError, match=message):
            made(tmp_path, plain_pairs(2), trainer_class, config_class, given=given, max_length=24, **options)

    def test_data_given_to_evaluate_are_checked_alike(self, tmp_path):
        done = made(tmp_path, plain_pairs(2), max_length=24)
        with pytest.raises(ValueError, match=r"1 of 2 evaluation rows have no response token.*\(rows 1\)"):
            done.evaluate(LONG)
        with pytest.raises(
            ValueError, match=r"1 of 2 rows of the evaluation set `x` have a null in `prompt` \(rows 0\)"
        ):
            done.evaluate({"x": Dataset.from_list([{"prompt": None, "completion": "c"}, plain_pairs(1)[0]])})

    def test_no_trajectory_of_one_is_an_error(self, tmp_path):
        with pytest.raises(ValueError, match="None of the 2 rows of the evaluation dataset keeps a token"):
            made(
                tmp_path,
                plain_pairs(2),
                DaDDaggerTrainer,
                DaDDaggerConfig,
                given={"eval_dataset": LONG_CHAT},
                max_length=24,
                **DAD,
            )


@pytest.mark.parametrize(
    ("trainer_class", "config_class", "options"),
    [
        (BASHTrainer, BASHConfig, {}),
        (SPINTrainer, SPINConfig, {"max_new_tokens": 4}),
        (DaDDaggerTrainer, DaDDaggerConfig, DAD),
    ],
)
def test_conversations_of_which_no_response_is_left_are_refused(tmp_path, trainer_class, config_class, options):
    with pytest.raises(ValueError, match="None of the 2 .*keeps a token of its last response within `max_length=24`"):
        made(tmp_path, LONG_CHAT, trainer_class, config_class, max_length=24, **options)


def test_rows_without_a_trajectory_are_counted(tmp_path, caplog):
    short = [{"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]}]
    data = Dataset.from_list([*LONG_CHAT.to_list(), *short])
    made(tmp_path, data, DaDDaggerTrainer, DaDDaggerConfig, max_length=48, **DAD)
    assert "2 of 3 rows of the training dataset do not keep a token of their last response" in caplog.text


@pytest.mark.parametrize(
    ("trainer_class", "config_class", "options"),
    [(BASHTrainer, BASHConfig, {}), (RACTrainer, RACConfig, {}), (DaDDaggerTrainer, DaDDaggerConfig, DAD)],
)
def test_a_token_without_an_embedding_is_named_before_training(tmp_path, trainer_class, config_class, options):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["[NEW]"])
    data = Dataset.from_list([{"prompt": "a", "completion": text} for text in ("bb", "b[NEW]c", "cc")])
    with pytest.raises(
        ValueError, match=r"have tokens in `input_ids` that the model.*The tokens are `\[NEW\]`"
    ) as error:
        made(tmp_path, data, trainer_class, config_class, given={"processing_class": tokenizer}, **options)
    assert len(error.value.problems) == 1 and "resize_token_embeddings" in str(error.value)
    model = tiny_model(vocab_size=VOCAB_SIZE + 1)
    made(tmp_path, data, trainer_class, config_class, model, {"processing_class": tokenizer}, **options)


def test_tokenised_rows_are_held_against_the_model_before_it_is_loaded(tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    data = Dataset.from_dict({"input_ids": [[1, 2, 3], [1, VOCAB_SIZE, 3]]})
    with pytest.raises(
        ValueError, match=rf"1 of 2 training rows have tokens in `input_ids`.* {VOCAB_SIZE} emb.*rows 1\)"
    ):
        BASHTrainer(str(tmp_path / "model"), config(BASHConfig, tmp_path / "run"), train_dataset=data)


def test_two_beginnings_are_warned_of_once(tmp_path, caplog):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    model = tiny_model(vocab_size=len(tokenizer))
    for start, number in (("", 0), ("<bos>", 1)):
        data = Dataset.from_list([{"prompt": f"{start}a", "completion": "b"}] * 3)
        with caplog.at_level(logging.WARNING):
            made(tmp_path, data, model=model, given={"processing_class": tokenizer})
        assert caplog.text.count("3 of the first 3 rows begin with two `<bos>`") == number
