"""Every refusal on the page "Differences from SFTTrainer" is refused by name, and whatever is refused is on it."""

import inspect
import os
import re
from dataclasses import fields
from pathlib import Path

import pytest
from datasets import Dataset
from peft import PromptTuningConfig
from trl import SFTConfig, SFTTrainer

from trl_exbias import BASHConfig, BASHTrainer, RACConfig, RACTrainer, SPINConfig, SPINTrainer

from ..tiny import byte_tokenizer, conversations, plain_pairs, tiny_model
from .runs import config, logged, trainer


PAGE = Path(__file__).parents[2] / "docs/differences_from_sft_trainer.md"


def setting(name, value):
    return lambda folder: config(BASHConfig, folder, **{name: value})


def made(dataset, trainer_class=BASHTrainer, config_class=BASHConfig, settings=None, **arguments):
    def make(folder):
        trainer(trainer_class, config(config_class, folder, **(settings or {})), dataset, **arguments)

    return make


class OwnLoss(BASHTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def trained(folder, resume=None, **settings):
    args = config(BASHConfig, folder, max_steps=1, save_strategy="steps", save_steps=1, **settings)
    trainer(BASHTrainer, args, plain_pairs(4)).train(resume_from_checkpoint=resume)


def trained_twice(folder):
    trained(folder)
    trained(folder)


def resumed_with_another_beta(folder):
    trained(folder)
    trained(folder, resume=True, beta=0.7)


PICTURES = Dataset.from_list([{"messages": [{"role": "user", "content": "?"}], "images": [b""]}])
TUNING = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
QUESTIONS = Dataset.from_list([{"messages": [{"role": "user", "content": "?"}]}])
EMPTY = Dataset.from_list([{"prompt": "a", "completion": ""}])
LONG = Dataset.from_list([{"prompt": "a" * 99, "completion": "b"}])
TEXT = Dataset.from_list([{"text": "a b"}])

#: By the first column of the page's tables: what to do, and what must be said.
REFUSED = {
    "`packing=True`": (setting("packing", True), "`packing=True` is not supported .* Set `packing=False`"),
    "`padding_free=True`": (setting("padding_free", True), "`padding_free=True` .* Set `padding_free=False`"),
    '`truncation_mode="keep_end"`': (
        setting("truncation_mode", "keep_end"),
        "`truncation_mode='keep_end'` .* 'keep_start'",
    ),
    "`label_smoothing_factor`": (setting("label_smoothing_factor", 0.1), "`label_smoothing_factor` .* Set it to 0"),
    "`enable_jit_checkpoint=True`": (setting("enable_jit_checkpoint", True), "`enable_jit_checkpoint` .* Leave it off"),
    "`auto_find_batch_size=True`": (
        setting("auto_find_batch_size", True),
        "`auto_find_batch_size=True` .*per_device_train_b",
    ),
    '`train_sampling_strategy="batch_rebalance"`': (
        setting("train_sampling_strategy", "batch_rebalance"),
        "`train_sampling_strategy='batch_rebalance'` .* Use 'group_by_length'",
    ),
    "`data_collator`": (made(plain_pairs(), data_collator=print), "`data_collator` is not supported"),
    "`compute_loss_func`": (
        made(plain_pairs(), compute_loss_func=print),
        "`compute_loss_func` is not .*`score_branches`",
    ),
    "a subclass that overrides `compute_loss`": (made(plain_pairs(), OwnLoss), "OwnLoss overrides .*`score_branches`"),
    "an `IterableDataset`": (made(plain_pairs().to_iterable_dataset()), "`IterableDataset` cannot be rolled out"),
    "a data set with images": (made(PICTURES), "images"),
    "prompt, prefix or P-tuning": (made(plain_pairs(), peft_config=TUNING), "Prompt-learning adapters .* Use LoRA"),
    "a data set with a transform": (made(plain_pairs().with_transform(dict)), "has a transform .*`Dataset.map`"),
    "an empty response": (made(EMPTY), "empty response"),
    "a conversation that ends with the user": (made(QUESTIONS), "end with an assistant turn"),
    "a prompt that fills `max_length`": (made(LONG, settings={"max_length": 9}), "`max_length=9`"),
    "an evaluation row without a response": (
        made(plain_pairs(), eval_dataset=EMPTY),
        "evaluation rows .*empty response",
    ),
    "text or tokenised data for RAC and SPIN": [
        (made(TEXT, RACTrainer, RACConfig), "RACTrainer needs data in the form prompt-completion or messages"),
        (made(TEXT, SPINTrainer, SPINConfig), "SPINTrainer needs data in the form prompt-completion or messages"),
    ],
    "an `output_dir` that holds a run": (trained_twice, "already holds a run"),
    "another method's configuration": (made(plain_pairs(), RACTrainer, BASHConfig), "RACTrainer takes a RACConfig"),
    "resuming with other settings or data": (resumed_with_another_beta, "`beta` was 0.2 and is now 0.7"),
}


def listed() -> list[str]:
    """First cells of the tables whose second column gives a reason."""
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [row[0].removeprefix("| ") for row in rows if row[0] != "| given"]


def test_the_page_lists_what_is_tested_here():
    assert listed() == list(REFUSED)


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_listed_is_refused_by_name(tmp_path, what):
    cases = REFUSED[what]
    for number, (attempt, message) in enumerate(cases if isinstance(cases, list) else [cases]):
        with pytest.raises((ValueError, TypeError), match=message):
            attempt(tmp_path / str(number))


# Constructing a configuration with one of these changes the process, or asks for hardware.
NOT_TRIED = (
    "output_dir",
    "deepspeed",
    "fsdp",
    "parallelism_config",
    "tf32",
    "ddp_backend",
    "use_cpu",
    "bf16",
    "torch_compile",
)
TRIED = (True, False, 1, 0.1, "keep_end", "dft", "wrapped", "steps", "batch_rebalance", "group_by_length")


def takes(config_class, folder, **settings) -> bool:
    try:
        config_class(str(folder), use_cpu=True, bf16=False, **settings)
    except Exception:
        return False
    return True


@pytest.fixture
def standard_streams():
    """Puts them back: transformers opens, and closes, a file setting of 0 or 1, which is a standard stream."""
    kept = [os.dup(descriptor) for descriptor in range(3)]
    yield
    for descriptor, copy in enumerate(kept):
        os.dup2(copy, descriptor)
        os.close(copy)


@pytest.mark.usefixtures("standard_streams")
def test_no_setting_of_trls_is_refused_that_is_not_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    names = [field.name for field in fields(SFTConfig) if field.init and not field.name.startswith(NOT_TRIED)]
    refused = set()
    for name in names:
        for value in TRIED:
            if takes(SFTConfig, tmp_path, **{name: value}) and not takes(BASHConfig, tmp_path, **{name: value}):
                refused.add(name)
            elif takes(SFTConfig, tmp_path, **{name: value}):
                assert takes(BASHConfig, tmp_path, num_iterations=0, **{name: value}), (name, value)
    of_the_page = {match[1] for cell in listed() if (match := re.match(r"`(\w+)", cell))}
    assert refused == of_the_page & {field.name for field in fields(SFTConfig)} - {"output_dir"}


def test_no_argument_of_trls_is_refused_that_is_not_listed(tmp_path):
    names = [*inspect.signature(SFTTrainer.__init__).parameters][1:]
    refused = set()
    for name in names:
        given = {"model": tiny_model(), "args": config(BASHConfig, tmp_path), "train_dataset": conversations(2)}
        try:
            BASHTrainer(**{"processing_class": byte_tokenizer(), **given, **({} if name in given else {name: print})})
        except Exception as error:
            if f"`{name}` is not supported" in str(error):
                refused.add(name)
    assert refused == {"data_collator", "compute_loss_func"}


def test_the_loss_on_the_page_trains(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    defined: dict = {}
    exec(code, defined)
    own = defined["FocalBASHTrainer"]
    runs = [
        trainer(cls, config(BASHConfig, tmp_path / cls.__name__, sft_epochs=0), plain_pairs(4))
        for cls in (own, BASHTrainer)
    ]
    losses = [run.train() and logged(run, "loss/gold")[0] for run in runs]
    assert 0 < losses[0] < losses[1]
