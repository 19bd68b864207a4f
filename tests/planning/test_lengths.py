"""Planned lengths are those that training has."""

import json

import pytest
from datasets import Dataset

from trl_exbias import RACConfig, RACTrainer
from trl_exbias.core.data import Example
from trl_exbias.planning.lengths import measure

from ..loop.runs import config, trainer
from ..tiny import published_template, tiny_model, tokenizer_of


TOOLS = json.dumps([{"type": "function", "function": {"name": "w", "description": "d", "parameters": {}}}])
SHAREGPT = [{"from": who, "value": what} for who, what in (("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d"))]


@pytest.mark.parametrize("turns", ["last", "all"])
@pytest.mark.parametrize(
    "row", [{"conversations": SHAREGPT}, {"prompt": SHAREGPT[:3], "completion": SHAREGPT[3:], "tools": TOOLS}]
)
def test_of_conversations_whose_prompt_is_no_prefix(tmp_path, row, turns):
    """Qwen3.5's prompt ends inside a token of the answer."""
    tokenizer = tokenizer_of(published_template("qwen3_5_think"), newlines=2)
    args = config(RACConfig, tmp_path, rollout_turns=turns, chat_template_kwargs={"x": 1}, max_length=4096)
    data = Dataset.from_list([row])
    form = "messages" if "conversations" in row else "prompt-completion"
    found = measure(data, 1, form, tokenizer, args, cuts_trajectories=False, shown=args.correction_template)
    made = trainer(RACTrainer, args, data, tiny_model(vocab_size=len(tokenizer)), processing_class=tokenizer)
    examples = [Example.from_row(i, row) for i, row in enumerate(made.train_dataset)]
    assert found.rows == [(len(e.context_ids), len(e.response_ids)) for e in examples]
    assert found.corrections == [len(made._template.context_ids(e.row, tokenizer)) for e in examples]
    assert any(e.trained for e in examples)
