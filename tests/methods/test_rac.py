"""RAC against its equations."""

import string

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from trl_exbias import RACConfig, RACTrainer
from trl_exbias.core.branches import Branch
from trl_exbias.core.data import Example
from trl_exbias.methods.rac_template import CorrectionTemplate
from trl_exbias.rollouts.noise import derive_seed
from trl_exbias.run.rollout_store import RolloutStore

from ..loop.runs import config, logged, trainer, weights
from ..reference import losses as reference_losses
from ..reference import rollouts as reference_rollouts
from ..tiny import byte_tokenizer, conversations, plain_pairs, tiny_model


TEMPLATE = "{{ prompt }} (answer: {{ reference }})"


def run(tmp_path, dataset=None, model=None, **options) -> RACTrainer:
    peft_config, tokenizer = options.pop("peft_config", None), options.pop("processing_class", None)
    options = {"max_new_tokens": 12, "correction_template": TEMPLATE, **options}
    args = config(RACConfig, tmp_path, **options)
    done = trainer(
        RACTrainer, args, dataset or conversations(8), model, peft_config=peft_config, processing_class=tokenizer
    )
    done.train()
    return done


def correction_context(done, row: int) -> list[int]:
    """f(x, y) of a row, as the trainer's own settings have it."""
    template = CorrectionTemplate(done.args.correction_template)
    return template.context_ids(done.train_dataset[row], done._tokenizer, done.chat_template)


def rollouts(done, iteration: int = 1) -> dict[int, dict]:
    store = RolloutStore(f"{done.args.output_dir}/rollouts/iteration-{iteration}")
    return {row["example_id"]: row for row in store.read().to_list()}


@pytest.mark.parametrize("sampling", [{}, {"repetition_penalty": 0.5, "stop_strings": [*string.ascii_letters]}])
def test_rollouts_labels_and_loss_equal_the_reference(tmp_path, sampling):
    """With a learning rate of 0 the policy stays the initial model, and one batch of all rows has Algorithm 2's J."""
    done = run(tmp_path, learning_rate=0.0, per_device_train_batch_size=8, sft_epochs=0, **sampling)
    model, tokenizer = tiny_model(), byte_tokenizer()
    options = done.sampling_options(derive_seed(done.args.seed, "rollouts", 1))
    rows, made = [], rollouts(done)
    for index, row in enumerate(done.train_dataset):
        example = Example.from_row(index, row)
        z = reference_rollouts.sample(model, example.context_ids, options, example.id, tokenizer)
        question, answer = row["prompt"][0]["content"], row["completion"][0]["content"]
        f = tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{question} (answer: {answer})"}], add_generation_prompt=True
        )["input_ids"]
        z_bar = reference_rollouts.label(model, f, z)
        assert made[index]["input_ids"] == z
        assert made[index]["labels"] == [b if b != a else -100 for a, b in zip(z, z_bar, strict=True)]
        rows.append((example.context_ids, example.response_ids, z, z_bar))
    assert logged(done, "loss") == [pytest.approx(reference_losses.rac(model, rows).item(), rel=1e-4)]


def test_the_correction_rate_is_the_share_of_corrected_positions(tmp_path):
    done = run(tmp_path)
    labels = [label for row in rollouts(done).values() for label in row["labels"]]
    expected = sum(label != -100 for label in labels) / len(labels)
    assert logged(done, "rac/correction_rate") == [pytest.approx(expected)]
    lengths = [len(row["labels"]) for row in rollouts(done).values()]
    assert logged(done, "rollout/length") == [pytest.approx(sum(lengths) / len(lengths))]
    assert logged(done, "rollout/num_tokens") == [sum(lengths)]


def test_tokens_read_for_labels_are_those_of_the_correction_contexts_and_the_responses(tmp_path):
    """With a `max_length` that cuts the rollouts: what was drawn and read counts, not what is kept."""
    done = run(tmp_path, max_new_tokens=60, max_length=64, learning_rate=0.0)
    read = 0
    for index, row in enumerate(done.train_dataset):
        example = Example.from_row(index, row)
        options = done.sampling_options(derive_seed(done.args.seed, "rollouts", 1))
        response = reference_rollouts.sample(tiny_model(), example.context_ids, options, example.id)
        read += len(correction_context(done, index)) + len(response)
    assert logged(done, "teacher/num_tokens") == [read]


class AgreeingRACTrainer(RACTrainer):
    """Agrees with everything it says."""

    def build_branches(self, examples, engine, options):
        branches = super().build_branches(examples, engine, options)
        return [[Branch("own", b.input_ids, [-100] * len(b.input_ids)) for b in own] for own in branches]


def test_where_the_model_agrees_with_itself_rac_is_sft(tmp_path):
    """An all-agree batch is a finite zero: the losses and weights of training on gold alone."""
    args = config(RACConfig, tmp_path / "agree", max_new_tokens=6, correction_template=TEMPLATE)
    agreeing = trainer(AgreeingRACTrainer, args, conversations(8))
    agreeing.train()
    sft = run(tmp_path / "sft", num_iterations=0, sft_epochs=2)
    assert logged(agreeing, "loss") == pytest.approx(logged(sft, "loss"), rel=1e-5)
    assert all(loss == loss and loss > 0 for loss in logged(agreeing, "loss"))
    assert logged(agreeing, "loss/own") == []
    torch.testing.assert_close(weights(agreeing), weights(sft), rtol=0, atol=1e-5)


def test_responses_end_with_the_chat_templates_end_of_turn(tmp_path):
    """The tokenizer's EOS is another token: `<|im_end|>` stops all the same, and is kept."""
    tokenizer = byte_tokenizer()
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.eos_token = "<|im_start|>"
    model = tiny_model()
    with torch.no_grad():  # an end of turn that is likely
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
        model.lm_head.bias[end_of_turn] = 12.0
    done = run(tmp_path, model=model, max_new_tokens=40, processing_class=tokenizer)
    responses = [row["input_ids"] for row in rollouts(done).values()]
    assert sum(response[-1] == end_of_turn for response in responses) > 4
    assert all(end_of_turn not in response[:-1] for response in responses)
    truncated = sum(response[-1] != end_of_turn for response in responses) / len(responses)
    assert logged(done, "rollout/truncation_rate") == [pytest.approx(truncated)]


def test_a_response_is_cut_where_the_row_would_exceed_max_length(tmp_path):
    done = run(tmp_path, max_new_tokens=60, max_length=64)
    for index, row in rollouts(done).items():
        assert done.train_dataset[index]["context_length"] + len(row["input_ids"]) <= 64


def test_a_correction_context_beyond_the_models_positions_leaves_gold_alone(tmp_path):
    long = "{{ prompt }}{{ reference }}" + "x" * 240
    done = run(tmp_path, model=tiny_model("gpt2"), correction_template=long, max_new_tokens=20)
    assert rollouts(done) == {}
    assert logged(done, "rac/unlabelled_rate") == [1.0]
    assert len(logged(done, "loss/gold")) == 2


def test_plain_text_pairs_use_the_whole_rendering(tmp_path):
    done = run(tmp_path, plain_pairs(8), correction_template="summarization")
    context = correction_context(done, 0)
    assert done._tokenizer.decode(context).startswith("[POST]: 0 + 0 =\n[REFERENCE SUMMARY]:  0\nRe-write")
    assert len(rollouts(done)) == 8


def test_a_multi_turn_conversation_shows_the_reference_in_its_last_user_turn(tmp_path):
    turns = ["Hi.", "Hello!", "2 + 2?", "It is 4."]
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    done = run(tmp_path, Dataset.from_list([{"messages": messages}] * 4))
    context = done._tokenizer.decode(correction_context(done, 0))
    assert context == (
        "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\n2 + 2? (answer: It is 4.)<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_chat_template_without_a_system_role_gets_its_text_in_the_user_turn(tmp_path):
    strict = byte_tokenizer(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    done = run(tmp_path, correction_template="qa", max_length=None, processing_class=strict)
    context = done._tokenizer.decode(correction_context(done, 0))
    assert context.startswith("[user]You are a helpful assistant")
    assert context.endswith("reference response: It is 0, <|im_end|>[assistant]")


def test_lora_and_bf16_train(tmp_path):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    done = run(tmp_path, peft_config=lora, bf16=True, num_iterations=2)
    assert len(logged(done, "loss/own")) == 4
    assert rollouts(done, 1) != rollouts(done, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correction_template": "{{ prompt }}"}, "does not mention `{{ reference }}`"),
        ({"correction_template": "{{ prompt }{{ reference }}"}, "not valid jinja"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(RACConfig, tmp_path, **options)


def test_plain_text_without_a_prompt_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="RACTrainer needs data in the form prompt-completion or messages.*form text"):
        trainer(RACTrainer, config(RACConfig, tmp_path), Dataset.from_list([{"text": "a story"}]))
