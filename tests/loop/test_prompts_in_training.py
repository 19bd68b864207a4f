"""Every method where gold's tokens do not begin with inference's prompt: its loss is that of separate forwards, each sequence
after its own context."""

import json
import logging
from datetime import datetime, timedelta

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from trl_exbias import (
    BASHConfig,
    BASHTrainer,
    DaDDaggerConfig,
    DaDDaggerTrainer,
    RACConfig,
    RACTrainer,
    ScheduledSamplingConfig,
    ScheduledSamplingTrainer,
    SPINConfig,
    SPINTrainer,
)
from trl_exbias.comparing.alike import differences, settings_of_run
from trl_exbias.core.branches import PROMPT
from trl_exbias.core.data import Example
from trl_exbias.core.joint_dataset import JointDataset, labelled
from trl_exbias.rollouts.noise import derive_seed
from trl_exbias.run.rollout_store import RolloutStore

from ..chat.test_stop_tokens import of as published_tokenizer
from ..reference import losses as reference_losses
from ..reference import rollouts as reference_rollouts
from ..tiny import conversations, published_template, tiny_model, tokenizer_of
from .runs import config, logged, trainer


TOKENIZER = tokenizer_of(published_template("qwen3_5_think"), newlines=2)
TOOLS = [
    {
        "type": "function",
        "function": {"name": "w", "description": "d", "parameters": {"type": "object", "properties": {}}},
    }
]


def model():
    return tiny_model(vocab_size=len(TOKENIZER))


def rows() -> Dataset:
    """Answers without reasoning, whose prompt ends inside a token of theirs, and some with."""
    turns = conversations(6).to_list()
    for row in turns[::3]:
        row["completion"][0]["reasoning_content"] = "r"
    return Dataset.from_list(turns)


def run(trainer_class, config_class, tmp_path, **options):
    options = {"learning_rate": 0.0, "per_device_train_batch_size": 6, "sft_epochs": 0, "max_length": 256, **options}
    args = config(config_class, tmp_path, **options)
    done = trainer(trainer_class, args, rows(), model(), processing_class=TOKENIZER)
    done.train()
    return done


def examples(done) -> list[Example]:
    found = [Example.from_row(i, row, done.args.max_length) for i, row in enumerate(done.train_dataset)]
    assert [example.trained is None for example in found].count(False) >= 4
    for example, row in zip(found, rows(), strict=False):
        if done.train_dataset.column_names.count("prompt"):
            assert (
                example.context_ids
                == TOKENIZER.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
            )
    return found


def rollouts(done, iteration: int = 1) -> dict[int, dict]:
    store = RolloutStore(f"{done.args.output_dir}/rollouts/iteration-{iteration}")
    return {row["example_id"]: row for row in store.read().to_list()}


def nll(first, parts) -> float:
    return reference_losses.mean(
        [value for part in parts for value in reference_losses.sequence_nll(first, *part)]
    ).item()


@pytest.fixture(params=["shared", "separate"])
def layout(request, monkeypatch):
    if request.param == "separate":
        monkeypatch.setattr("trl_exbias.loop.joint.check_shared_context", lambda model: "a test")


def test_bash_mixes_what_comes_after_the_prompt(tmp_path, layout):
    done, first = run(BASHTrainer, BASHConfig, tmp_path, beta=0.5), model()
    made, found = rollouts(done), examples(done)
    for e in found:
        assert made[e.id]["labels"] == e.response_labels
        drawn = [new != old for new, old in zip(made[e.id]["input_ids"], e.response_ids, strict=True)]
        assert any(drawn)
    expected = nll(first, [e.gold for e in found])
    expected += nll(first, [(e.context_ids, made[e.id]["input_ids"], e.response_labels) for e in found])
    assert logged(done, "loss") == [pytest.approx(expected, rel=1e-4)]


def test_rac_draws_after_the_prompt_and_labels_after_the_correction(tmp_path, layout):
    done, first = run(RACTrainer, RACConfig, tmp_path, max_new_tokens=8), model()
    options = done.sampling_options(derive_seed(done.args.seed, "rollouts", 1))
    made, found, own = rollouts(done), examples(done), []
    for e in found:
        z = reference_rollouts.sample(first, e.context_ids, options, e.id)
        f = done._template.context_ids(e.row, TOKENIZER)
        assert TOKENIZER.decode(f).endswith("<|im_start|>assistant\n<think>\n")
        corrected = reference_rollouts.label(first, f, z)
        assert made[e.id]["input_ids"] == z
        own.append((e.context_ids, z, [new if new != old else -100 for old, new in zip(z, corrected, strict=True)]))
    expected = nll(first, [e.gold for e in found]) + nll(first, own)
    assert logged(done, "loss") == [pytest.approx(expected, rel=1e-4)]


def test_spin_compares_each_response_after_its_own_context(tmp_path, layout):
    """With prompts that are trained on too: they are not part of a response. The reference's ratio is gold's own."""
    done = run(SPINTrainer, SPINConfig, tmp_path, max_new_tokens=8, completion_only_loss=False)
    first, made = model(), rollouts(done)
    assert logged(done, "loss") == [pytest.approx(0.693147, rel=1e-4)], "a policy that is its own reference"
    for e in examples(done):
        context, response, labels = e.gold
        of_gold = -sum(reference_losses.sequence_nll(first, context, response, labels)).item()
        own = made[e.id]["input_ids"]
        of_own = -sum(reference_losses.sequence_nll(first, e.context_ids, own, own)).item()
        assert made[e.id]["score"] == pytest.approx(of_gold - of_own, rel=1e-4)
    assert logged(done, "spin/margin") == [pytest.approx(0, abs=1e-4)]


def test_scheduled_sampling_mixes_after_the_prompt(tmp_path):
    done, first = run(ScheduledSamplingTrainer, ScheduledSamplingConfig, tmp_path, beta=0.5), model()
    found = examples(done)
    options = done.sampling_options(derive_seed(done.args.seed, "scheduled sampling", 0))
    mixed = [
        (
            e.context_ids,
            reference_rollouts.mix(first, e.context_ids, e.response_ids, done._mask(e, options.seed), options, e.id),
            e.response_labels,
        )
        for e in found
    ]
    expected = nll(first, [e.gold for e in found]) + nll(first, mixed)
    assert logged(done, "loss") == [pytest.approx(expected, rel=1e-4)]


def test_dad_free_runs_from_the_prompt_and_labels_its_first_token_too(tmp_path):
    """Where the contexts differ, gold does not have the first label of the rollout's context."""
    done = run(
        DaDDaggerTrainer,
        DaDDaggerConfig,
        tmp_path,
        alpha=1.0,
        rollout_length=4,
        num_iterations=2,
        per_device_train_batch_size=64,
    )
    first, made, parts = model(), rollouts(done, 2), []
    for index, row in enumerate(done.train_dataset):
        e = Example.from_row(index, row, done.args.max_length)
        parts.append(e.gold)
        labels = e.response_labels if e.trained else [-100, *e.response_labels[1:]]
        assert made[index]["labels"] == labels
        parts.append((e.context_ids, made[index]["input_ids"], labels))
    assert logged(done, "loss")[-1] == pytest.approx(nll(first, parts), rel=1e-4)


def test_a_teacher_labels_each_branch_after_its_own_context(tmp_path):
    done = run(BASHTrainer, BASHConfig, tmp_path, beta=0.5)
    store = RolloutStore(f"{done.args.output_dir}/rollouts/iteration-1").read()
    for row, e in zip(JointDataset(done.train_dataset, [store]), examples(done), strict=False):
        (gold_context, gold), (context, mixed) = labelled(row)
        assert (gold_context, gold.input_ids, context) == (*e.gold[:2], e.context_ids)
        assert mixed.kind == "mixed"


def test_rollouts_get_the_room_that_the_prompt_leaves(tmp_path):
    """With a `max_length` that ends in or shortly after the prompt, which has a token more than gold's context."""
    longest = max(len(e.context_ids) for e in examples(run(RACTrainer, RACConfig, tmp_path / "0", max_new_tokens=2)))
    max_length = longest + 1
    for classes in ((RACTrainer, RACConfig), (SPINTrainer, SPINConfig)):
        done = run(*classes, tmp_path / classes[0]._name, max_new_tokens=8, max_length=max_length)
        for index, branch in rollouts(done).items():
            example = Example.from_row(index, done.train_dataset[index], max_length)
            assert len(example.context_ids) + len(branch["input_ids"]) <= max_length


def test_the_setting_of_template_arguments_is_for_all_rows_and_a_rows_own_wins(tmp_path):
    turns = conversations(2).to_list()
    turns[0]["chat_template_kwargs"] = None
    turns[1]["chat_template_kwargs"] = {"enable_thinking": True}
    args = config(BASHConfig, tmp_path, chat_template_kwargs='{"enable_thinking": false}', max_length=256)
    made = trainer(BASHTrainer, args, Dataset.from_list(turns), model(), processing_class=TOKENIZER)
    ends = [TOKENIZER.decode(Example.from_row(i, row).context_ids)[-20:] for i, row in enumerate(made.train_dataset)]
    assert ends[0].endswith("<think>\n\n</think>\n\n")
    assert ends[1].endswith("assistant\n<think>\n")


@pytest.mark.parametrize("given", ["{", "[1]", [1]])
def test_template_arguments_that_are_none_are_refused(tmp_path, given):
    with pytest.raises(ValueError, match="`chat_template_kwargs`"):
        config(BASHConfig, tmp_path, chat_template_kwargs=given)


def test_template_arguments_without_conversations_are_said_to_do_nothing(tmp_path, caplog):
    args = config(BASHConfig, tmp_path, chat_template_kwargs={"x": 1})
    with caplog.at_level(logging.WARNING):
        trainer(BASHTrainer, args, Dataset.from_list([{"text": "ab"}]), model(), processing_class=TOKENIZER)
    assert "`chat_template_kwargs` has no effect" in caplog.text


def test_a_marked_training_template_leaves_rollouts_inferences_prompt(tmp_path):
    """`assistant_only_loss`: TRL trains with a template that keeps the reasoning of a history; inference drops it."""
    tokenizer = tokenizer_of(published_template("qwen3"))
    history = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "B", "reasoning_content": "r"}]
    row = {"messages": [*history, {"role": "user", "content": "q"}, {"role": "assistant", "content": "A"}]}
    args = config(BASHConfig, tmp_path, assistant_only_loss=True, max_length=256)
    made = trainer(
        BASHTrainer,
        args,
        Dataset.from_list([row] * 2),
        tiny_model(vocab_size=len(tokenizer)),
        processing_class=tokenizer,
    )
    example = Example.from_row(0, made.train_dataset[0])
    expected = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True)["input_ids"]
    assert example.context_ids == expected
    assert tokenizer.decode(example.response_ids) == "<think>\n\n</think>\n\nA<|im_end|>\n"
    assert "r\n</think>" in tokenizer.decode(example.gold[0])


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "A"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
            ]
        },
    ],
)
def test_rows_are_trained_on_as_sfttrainer_trains_on_their_plain_form(tmp_path, row):
    plain = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "A"}]}
    args = SFTConfig(str(tmp_path / "sft"), report_to=[], use_cpu=True, bf16=False)
    expected = SFTTrainer(model(), args, train_dataset=Dataset.from_list([plain]), processing_class=TOKENIZER)
    made = trainer(
        BASHTrainer, config(BASHConfig, tmp_path), Dataset.from_list([row]), model(), processing_class=TOKENIZER
    )
    for column in ("input_ids", "labels"):
        assert made.train_dataset[column][:] == expected.train_dataset[column][:]


def test_rac_refuses_what_it_cannot_show_before_it_trains(tmp_path):
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "w", "arguments": {}}}],
    }
    fine = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "A"}]}
    tokenizer = tokenizer_of(published_template("llama3"), bos="<|pad|>")
    for messages, problem in (
        (
            [{"role": "user", "content": "q"}, call],
            r"\(rows 1\)\. In row 1 the chat template renders nothing of the last answer",
        ),
        (
            [{"role": "system", "content": "q"}, {"role": "assistant", "content": "A"}],
            "In row 1 a conversation needs a user turn",
        ),
    ):
        data = Dataset.from_list([fine, {"messages": messages}])
        with pytest.raises(ValueError, match=problem):
            trainer(
                RACTrainer,
                config(RACConfig, tmp_path),
                data,
                tiny_model(vocab_size=len(tokenizer)),
                processing_class=tokenizer,
            )


def test_an_answer_of_which_the_template_renders_nothing_is_refused(tmp_path):
    """Llama 3's template knows no calls: trained on, such a row would teach the model to say nothing."""
    tokenizer, _ = published_tokenizer("llama3")
    call = {"type": "function", "function": {"name": "w", "arguments": "{}"}}
    asked = {"role": "user", "content": "q"}
    fine = {"messages": [asked, {"role": "assistant", "content": "A"}]}
    silent = {"messages": [asked, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    args, small = config(BASHConfig, tmp_path), tiny_model(vocab_size=len(tokenizer))
    with pytest.raises(ValueError, match=r"Row 1: its answer is rendered as '<\|eot_id\|>', which says nothing"):
        trainer(BASHTrainer, args, Dataset.from_list([fine, silent]), small, processing_class=tokenizer)


def test_a_run_that_is_resumed_on_another_day_renders_the_day_on_which_it_began(tmp_path, monkeypatch):
    dated = "{{ '<|im_start|>system\nIt is ' + strftime_now('%d %B %Y') + '<|im_end|>' }}" + published_template(
        "qwen2_5"
    )
    tokenizer = tokenizer_of(dated)

    def made():
        args = config(BASHConfig, tmp_path, save_strategy="steps", save_steps=1, max_length=256, sft_epochs=1)
        return trainer(BASHTrainer, args, rows(), tiny_model(vocab_size=len(tokenizer)), processing_class=tokenizer)

    first = made()
    first.train()
    assert datetime.now().strftime("%d %B %Y") in tokenizer.decode(first.train_dataset[0]["input_ids"])
    assert tokenizer.chat_template == dated, "the model's own template names no day"

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=40)

    for module in ("transformers.utils.chat_template_utils", "trl_exbias.run.run_directory"):
        monkeypatch.setattr(f"{module}.datetime", Later)
    second = made()
    assert second.train_dataset["input_ids"][:] == first.train_dataset["input_ids"][:]
    second.train(resume_from_checkpoint=f"{tmp_path}/checkpoint-2")
    assert json.loads((tmp_path / "run.json").read_text())["rendered_on"] == first.rendered_on.isoformat()
    other = trainer(
        BASHTrainer,
        config(BASHConfig, tmp_path / "new", max_length=256),
        rows(),
        tiny_model(vocab_size=len(tokenizer)),
        processing_class=tokenizer,
    )
    assert Later.now().strftime("%d %B %Y") in tokenizer.decode(other.train_dataset[0]["input_ids"])


def test_a_table_of_rollouts_shows_the_prompt_and_what_comes_after_it(tmp_path, capsys):
    done = run(BASHTrainer, BASHConfig, tmp_path, num_rollouts_to_print=2)
    assert PROMPT in done.train_dataset.column_names
    shown = "".join(capsys.readouterr().out.split())
    assert "<think>" in shown
    assert "</think>" in shown


def test_runs_on_these_rows_have_the_same_data_as_plain_sft(tmp_path):
    """`exbias compare` refuses runs whose data differ; a resumed run, one whose prompts do."""
    sft = run(BASHTrainer, BASHConfig, tmp_path / "sft", beta=0.0)
    bash = run(BASHTrainer, BASHConfig, tmp_path / "bash", beta=0.5)
    assert PROMPT in bash.train_dataset.column_names and PROMPT not in sft.train_dataset.column_names
    records = {name: json.loads((tmp_path / name / "run.json").read_text()) for name in ("sft", "bash")}
    assert not differences({name: settings_of_run(record) for name, record in records.items()})
    assert bash.rows_identity != bash.data_fingerprint == sft.rows_identity
