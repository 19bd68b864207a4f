"""The context of a rollout is what inference gives the model, token for token, whatever gold's training tokens are."""

import json
import logging

import pytest
from datasets import Dataset

from trl_exbias.chat.conversations import normalised
from trl_exbias.chat.prompts import mark_responses, response_after_prompt, response_lengths, token_ids
from trl_exbias.core.branches import CONTEXT_LENGTH, PROMPT, REFERENCE, REFERENCE_LABELS
from trl_exbias.core.data import Example
from trl_exbias.core.fingerprint import rows_fingerprint
from trl_exbias.methods.dad_dagger.responses import cut_responses

from ..tiny import published_template, tokenizer_of


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "w",
            "description": "d",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
ASKED = [{"role": "user", "content": "q"}]
ANSWER = {"role": "assistant", "content": "A"}
REASONED = {**ANSWER, "reasoning_content": "r", "thinking": "r"}
HISTORY = [{"role": "user", "content": "p"}, REASONED, *ASKED]


def prepared(
    tokenizer, rows: list[dict], form: str = "prompt-completion", training_template=None, **options
) -> Dataset:
    """Rows as the trainers prepare them, with every token of the answer labelled."""
    dataset = normalised(Dataset.from_list(rows), options.get("template_kwargs"))
    ids = [token_ids(row, form, tokenizer, chat_template=training_template) for row in dataset]
    dataset = dataset.add_column("input_ids", ids).add_column("labels", ids)
    return mark_responses(dataset, form, tokenizer, training_template=training_template)


def only(dataset: Dataset, max_length: int | None = None) -> Example:
    return Example.from_row(0, dataset[0], max_length)


@pytest.mark.parametrize("newlines", [1, 2])
@pytest.mark.parametrize(
    "name",
    [
        "qwen3",
        "qwen2_5",
        "qwen3_5_think",
        "qwen3_5_nothink",
        "qwen3_6",
        "qwen3_8",
        "nemotron_3_nano",
        "nemotron_3_ultra",
    ]
    + ["deepseek_r1_distill", "gptoss", "glm4moe", "lfm2_2_5", "cohere2", "phi3", "llama3_1", "gemma4", "muse_glimmer"],
)
def test_the_context_is_the_prompt_of_inference(name, newlines):
    tokenizer = tokenizer_of(published_template(name), newlines=newlines, bos="<|pad|>")
    rows = [
        {"prompt": ASKED, "completion": [ANSWER]},
        {"prompt": ASKED, "completion": [REASONED]},
        {"prompt": HISTORY, "completion": [ANSWER]},
        {"prompt": ASKED, "completion": [ANSWER], "tools": json.dumps(TOOLS)},
        {"prompt": ASKED, "completion": [ANSWER], "chat_template_kwargs": {"enable_thinking": False}},
    ]
    for row in rows:
        expected = tokenizer.apply_chat_template(
            row["prompt"],
            add_generation_prompt=True,
            tools=TOOLS if "tools" in row else None,
            return_dict=False,
            **row.get("chat_template_kwargs", {}),
        )
        example = only(prepared(tokenizer, [row]))
        assert example.context_ids == expected
        assert "A" in tokenizer.decode(example.response_ids)
        gold = [*example.gold[0], *example.gold[1]]
        assert gold == tokenizer.apply_chat_template(
            [*row["prompt"], *row["completion"]],
            tools=TOOLS if "tools" in row else None,
            return_dict=False,
            **row.get("chat_template_kwargs", {}),
        )
        if tokenizer.decode(gold).startswith(tokenizer.decode(expected)):
            assert tokenizer.decode([*example.context_ids, *example.response_ids]) == tokenizer.decode(gold)


class TestTheReference:
    def test_text_that_a_token_shares_with_the_prompt_gets_tokens_of_its_own(self):
        """The prompt ends `<think>\\n`, gold has `<think>\\n\\n</think>`, in which two line ends are one token."""
        tokenizer = tokenizer_of(published_template("qwen3_5_think"), newlines=2)
        dataset = prepared(tokenizer, [{"prompt": ASKED, "completion": [ANSWER]}])
        example = only(dataset)
        assert dataset[0][CONTEXT_LENGTH] == len(example.context_ids) - 1
        assert tokenizer.convert_ids_to_tokens(example.response_ids)[:4] == ["Ċ", "</think>", "ĊĊ", "A"]
        assert example.response_labels == example.response_ids
        assert tokenizer.convert_ids_to_tokens(example.gold[1])[:4] == ["ĊĊ", "</think>", "ĊĊ", "A"]

    def test_where_the_texts_part_it_is_golds_tokens_from_there_on(self):
        """The prompt has an empty block, gold's reasoning begins inside it."""
        tokenizer = tokenizer_of(published_template("qwen3_5_nothink"), newlines=2)
        example = only(prepared(tokenizer, [{"prompt": ASKED, "completion": [REASONED]}]))
        assert tokenizer.decode(example.context_ids).endswith("<think>\n\n</think>\n\n")
        assert tokenizer.decode(example.response_ids) == "\nr\n</think>\n\nA<|im_end|>\n"

    def test_of_plain_text_too(self):
        tokenizer = tokenizer_of(None, newlines=2)
        dataset = prepared(tokenizer, [{"prompt": "ab\n", "completion": "\nc"}, {"prompt": "\n", "completion": "\nc"}])
        for index, prompt in enumerate(["ab\n", "\n"]):
            example = Example.from_row(index, dataset[index])
            assert tokenizer.decode(example.context_ids) == prompt
            assert tokenizer.decode(example.response_ids) == "\nc<|im_end|>"
        assert dataset[1][CONTEXT_LENGTH] == 1

    def test_a_training_template_of_another_history_does_not_move_where_the_answer_begins(self):
        """TRL's template keeps the reasoning of a history, inference's drops it: far before the answer they part."""
        tokenizer = tokenizer_of(published_template("qwen3"))
        training = published_template("qwen3_training")
        dataset = prepared(tokenizer, [{"prompt": HISTORY, "completion": [ANSWER]}], training_template=training)
        example = only(dataset)
        assert "r\n</think>" in tokenizer.decode(example.gold[0])
        assert "r\n</think>" not in tokenizer.decode(example.context_ids)
        assert tokenizer.decode(example.response_ids) == "<think>\n\n</think>\n\nA<|im_end|>\n"
        assert example.response_ids == example.gold[1]

    def test_labels_are_golds(self):
        tokenizer = tokenizer_of(published_template("qwen3_5_think"), newlines=2)
        ids = token_ids({"prompt": ASKED, "completion": [ANSWER]}, "prompt-completion", tokenizer)
        labels = [-100] * len(ids)
        labels[-2] = ids[-2]
        row = {"prompt": ASKED, "completion": [ANSWER], "input_ids": ids, "labels": labels}
        example = only(mark_responses(Dataset.from_list([row]), "prompt-completion", tokenizer))
        assert example.response_labels == [-100] * (len(example.response_ids) - 2) + labels[-2:]


class TestColumns:
    tokenizer = tokenizer_of(published_template("qwen3_5_think"), newlines=2)

    def test_there_are_none_where_gold_begins_with_the_prompt(self, caplog):
        with caplog.at_level(logging.WARNING):
            dataset = prepared(self.tokenizer, [{"prompt": ASKED, "completion": [REASONED]}] * 2)
        assert not {PROMPT, REFERENCE, REFERENCE_LABELS} & set(dataset.column_names)
        assert not caplog.records
        assert only(dataset).trained is None

    def test_rows_that_differ_are_counted_once_with_an_example(self, caplog):
        rows = [{"prompt": ASKED, "completion": [answer]} for answer in (REASONED, ANSWER, ANSWER)]
        with caplog.at_level(logging.WARNING):
            dataset = prepared(self.tokenizer, rows)
        (record,) = caplog.records
        assert "of 2 of 3 rows do not begin with the prompt" in record.message
        assert r"In row 1 the prompt ends with '<|im_start|>assistant\n<think>\n'" in record.message
        assert r"the training tokens continue with '\n\n</think>" in record.message
        assert [row[PROMPT] is None for row in dataset] == [True, False, False]
        assert Example.from_row(0, dataset[0]).trained is None

    def test_other_prompts_are_other_data(self):
        """`enable_thinking` changes Qwen3's prompt, not gold's tokens: rollouts of the one are not the other's."""
        tokenizer = tokenizer_of(published_template("qwen3"), newlines=2)
        row = {"prompt": ASKED, "completion": [REASONED]}
        on = prepared(tokenizer, [row])
        off = prepared(tokenizer, [row], template_kwargs={"enable_thinking": False})
        assert on["input_ids"][:] == off["input_ids"][:]
        assert PROMPT not in on.column_names
        fingerprints = [rows_fingerprint(off, ("input_ids", PROMPT)), rows_fingerprint(off, ("input_ids",))]
        assert fingerprints[0] != fingerprints[1]

    def test_lengths_are_those_after_the_prompt_with_room_for_max_length(self):
        rows = [{"prompt": ASKED, "completion": [answer]} for answer in (REASONED, ANSWER)]
        dataset = prepared(self.tokenizer, rows)
        examples = [Example.from_row(index, row) for index, row in enumerate(dataset)]
        lengths, responses = response_lengths(dataset)
        assert responses.tolist() == [len(example.response_ids) for example in examples]
        assert lengths.tolist() == [len(e.context_ids) + len(e.response_ids) for e in examples]
        prompt = len(examples[1].context_ids)
        for room in (3, 0, -2):
            cut = Example.from_row(1, dataset[1], prompt + room)
            assert cut.response_ids == examples[1].response_ids[: max(0, room)]
            assert response_lengths(dataset, prompt + room)[1][1] == max(0, room)

    def test_a_response_that_was_cut_off_before_it_began_has_no_prompt(self):
        row = {"prompt": ASKED, "completion": [ANSWER]}
        ids = token_ids(row, "prompt-completion", self.tokenizer)
        for length in (5, prepared(self.tokenizer, [row])[0][CONTEXT_LENGTH]):
            dataset = Dataset.from_list([{**row, "input_ids": ids[:length], "labels": ids[:length]}])
            marked = mark_responses(dataset, "prompt-completion", self.tokenizer)
            assert PROMPT not in marked.column_names
            assert response_lengths(marked)[1].tolist() == [0]

    def test_trajectories_go_on_from_the_prompt(self):
        """A trajectory's context is the prompt and the earlier tokens of the answer; its labels are the answer's next tokens."""
        dataset = prepared(self.tokenizer, [{"prompt": ASKED, "completion": [{**ANSWER, "content": "ABCDEF"}]}])
        whole = only(dataset)
        cuts = cut_responses(dataset, rollout_length=3, stride=3)
        taken = []
        for index, row in enumerate(cuts):
            example = Example.from_row(index, row)
            assert example.context_ids == [*whole.context_ids, *whole.response_ids[: len(taken)]]
            assert example.gold[0] == row["input_ids"][: row[CONTEXT_LENGTH]]
            taken += example.response_ids
        assert taken == whole.response_ids

    def test_evaluation_takes_the_same_prompt_and_answer(self):
        for answer in (ANSWER, REASONED):
            row = {"prompt": ASKED, "completion": [answer]}
            example = only(prepared(self.tokenizer, [row]))
            assert response_after_prompt(row, "prompt-completion", self.tokenizer) == (
                example.context_ids,
                example.response_ids,
            )
