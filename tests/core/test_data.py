import json

from datasets import Dataset

from trl_exbias.chat.conversations import split_turns
from trl_exbias.chat.prompts import mark_responses


def chat(*turns: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


class TestMarkResponses:
    def split(self, row: dict, form: str, whole: list[int], tokenizer) -> tuple[str, str]:
        dataset = Dataset.from_list([{**row, "input_ids": whole, "labels": whole}])
        at = mark_responses(dataset, form, tokenizer, None, None)[0]["context_length"]
        return tokenizer.decode(whole[:at]), tokenizer.decode(whole[at:])

    def test_a_completion(self, tokenizer):
        whole = tokenizer("2 + 2 = 4<|im_end|>")["input_ids"]
        row = {"prompt": "2 + 2 =", "completion": " 4<|im_end|>"}
        assert self.split(row, "prompt-completion", whole, tokenizer) == ("2 + 2 =", " 4<|im_end|>")

    def test_the_last_assistant_turn_of_a_conversation(self, tokenizer):
        messages = chat("a", "b", "c", "d")
        whole = tokenizer.apply_chat_template(messages)["input_ids"]
        context, response = self.split({"messages": messages}, "messages", whole, tokenizer)
        assert context.endswith("<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n")
        assert response == "d<|im_end|>\n"

    def test_the_last_message_of_a_long_completion(self, tokenizer):
        row = {"prompt": chat("a"), "completion": [{"role": "assistant", "content": "b"}, *chat("c", "d")]}
        whole = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]])["input_ids"]
        assert self.split(row, "prompt-completion", whole, tokenizer)[1] == "d<|im_end|>\n"

    def test_plain_text_is_a_response_to_its_first_token(self, tokenizer):
        whole = tokenizer("Once")["input_ids"]
        assert self.split({"text": "Once"}, "text", whole, tokenizer) == ("O", "nce")

    def test_tokenised_data_by_its_last_labelled_stretch(self, tokenizer):
        labels = [-100, -100, 5, 6, -100, 8, 9, -100]
        dataset = Dataset.from_list([{"input_ids": list(range(8)), "labels": labels}])
        assert mark_responses(dataset, "tokenized", tokenizer, None, None)[0]["context_length"] == 5

    def test_tools_given_as_json_are_read(self, tokenizer):
        messages = chat("a", "b")
        whole = tokenizer.apply_chat_template(messages)["input_ids"]
        row = {"messages": messages, "tools": json.dumps([])}
        assert self.split(row, "messages", whole, tokenizer)[1] == "b<|im_end|>\n"


def test_every_turn_becomes_a_row():
    dataset = Dataset.from_list([{"messages": chat("a", "b", "c", "d")}, {"messages": chat("e", "f")}])
    rows = split_turns(dataset).to_list()
    assert [(row["prompt"][-1]["content"], row["completion"][0]["content"]) for row in rows] == [
        ("a", "b"),
        ("c", "d"),
        ("e", "f"),
    ]
    assert [len(row["prompt"]) for row in rows] == [1, 3, 1]
