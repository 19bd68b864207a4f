"""The tiny models of the bench, their tokenizer, and the rows as the trainers take them. No hub, no files."""

import random

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from .tasks import EQUALS, Rows, Task


EOS, PAD, UNKNOWN = "<eos>", "<pad>", "<unk>"
#: Shows the model a reference: the prompt ends in a space, and so does the reference that RAC puts in.
REFERENCE_TEMPLATE = "{{ prompt }}{{ reference }} " + EQUALS + " "
_POSITIONS = 128


def tokenizer_of(task: Task) -> PreTrainedTokenizerFast:
    """One token a word; ids are places in `task.words`."""
    words = (*task.words, EOS, PAD, UNKNOWN)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN)


def new_model(task: Task, seed: int, width: int = 64, layers: int = 2) -> GPT2LMHeadModel:
    """A GPT-2 of about 100,000 parameters, from scratch."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(task.words) + 3,
            n_embd=width,
            n_layer=layers,
            n_head=4,
            n_positions=_POSITIONS,
            activation_function="gelu_pytorch_tanh",  # GPT-2's function in one kernel: a fifth of the time
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=len(task.words),
        )
    )


def dataset_of(task: Task, rows: Rows) -> Dataset:
    """Prompt-completion rows."""
    return Dataset.from_list(
        [
            {"prompt": _text(task, prompt) + " ", "completion": _text(task, response)}
            for prompt, response in zip(rows.prompts.tolist(), rows.responses.tolist(), strict=True)
        ]
    )


def starting_dataset(task: Task, rows: Rows, seed: int) -> Dataset:
    """
    What the starting model is trained on: the rows, and where it shall read references, as many rewritings.

    A rewriting shows a row's response after the prompt of *another* row: only the reference tells what to write.
    """
    dataset = dataset_of(task, rows)
    if not task.reads_reference:
        return dataset
    others = random.Random(seed).sample(range(len(rows)), len(rows))
    rewritings = [
        {
            "prompt": f"{dataset[other]['prompt']}{row['completion']} {EQUALS} ",
            "completion": row["completion"],
        }
        for other, row in zip(others, dataset, strict=True)
    ]
    return Dataset.from_list([*dataset, *rewritings]).shuffle(seed=seed)


def _text(task: Task, token_ids: list[int]) -> str:
    return " ".join(task.words[token] for token in token_ids)
