"""An SFT step and a BASH joint step, through the trainer's own code: tokens a second, share of the matrix rate, memory."""

from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel
from trl import ModelConfig, get_peft_config

from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.core.branches import GOLD, Branch, BranchedExample
from trl_exbias.rollouts import SamplingOptions, TransformersEngine
from trl_exbias.rollouts.noise import uniform

from .common import QUIET, device, peak_bytes, precision, seconds_of
from .planned import layout_of, planned_peaks
from .random_policy import numbered_tokenizer


def make_trainer(
    folder: str,
    model: PreTrainedModel,
    model_args: ModelConfig,
    prompt: int,
    response: int,
    rows: int,
    rollout_batch_tokens: int,
    checkpointing: bool,
) -> BASHTrainer:
    """
    A BASH trainer set up as `recipes/bash/mistral-7b-lora_gsm8k.yaml` is, on random tokens of these lengths, with or without
    gradient checkpointing, and as it stands when `train()` takes its first step.
    """
    vocab_size = model.config.vocab_size
    data = [
        {"input_ids": row, "labels": [-100] * prompt + row[prompt:]}
        for row in torch.randint(
            3, vocab_size, (rows, prompt + response), generator=torch.Generator().manual_seed(0)
        ).tolist()
    ]
    options = {
        "per_device_train_batch_size": rows,
        "gradient_checkpointing": checkpointing,
        "max_length": None,
        "learning_rate": 5e-5,
        "rollout_batch_tokens": rollout_batch_tokens,
    }
    args = BASHConfig(folder, **{**QUIET, **precision(), **options})
    trainer = BASHTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(data),
        processing_class=numbered_tokenizer(vocab_size),
        peft_config=get_peft_config(model_args),
    )
    # All this `train()` does, not the trainer's construction. Without `prepare`, nothing computes in mixed precision.
    if checkpointing:
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    assert trainer.model.is_gradient_checkpointing == checkpointing
    trainer.create_optimizer()
    trainer.model_wrapped, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def take_model(trainer: BASHTrainer) -> PreTrainedModel:
    """The model as it was before its trainer was made: the adapter goes, the weights stay."""
    model = trainer.model.unload()
    model.gradient_checkpointing_disable()
    if trainer.args.gradient_checkpointing:
        model.disable_input_require_grads()
    return model


def examples_of(trainer: BASHTrainer, beta: float = 0.2) -> list[BranchedExample]:
    """The trainer's rows, each with a mixed branch: gold with a share of other tokens."""
    generator = torch.Generator().manual_seed(1)
    vocab_size, found = trainer.model.config.vocab_size, []
    for row in trainer.train_dataset:
        gold = row["input_ids"][row["context_length"] :]
        drawn = torch.randint(3, vocab_size, (len(gold),), generator=generator).tolist()
        mixed = [z if torch.rand((), generator=generator) < beta else y for z, y in zip(drawn, gold, strict=True)]
        found.append(
            BranchedExample.from_row(
                row["input_ids"], row["labels"], row["context_length"], [Branch("mixed", mixed, gold)]
            )
        )
    return found


def measure_steps(trainer: BASHTrainer, model_args: ModelConfig, matrix_rate: float, repeats: int) -> dict[str, Any]:
    """
    Both steps, forward and backward of one micro-batch, and with gradient checkpointing also rollouts, which are alike in both.

    `share` counts the operations that a step needs, 4 a weight and token where only adapters are trained and 6 where all are;
    `share_with_recomputation` also the forward that gradient checkpointing does twice.
    """
    checkpointing = trainer.args.gradient_checkpointing
    examples = examples_of(trainer)
    columns = ("input_ids", "labels", "context_length", "exbias_row")
    plain = [{name: row[name] for name in columns if name in row} for row in trainer.train_dataset]
    batches = {"sft": trainer.data_collator(plain), "joint": trainer.data_collator.collate(examples)}
    tokens = {"sft": sum(len(row["input_ids"]) for row in plain), "joint": int(batches["joint"]["num_tokens"])}
    weights = sum(
        p.numel() for n, p in trainer.model.named_parameters() if p.dim() > 1 and "embed" not in n and "lora" not in n
    )
    trains_all = trainer.model.get_input_embeddings().weight.requires_grad
    figures: dict[str, Any] = {}
    for name, batch in batches.items():
        counts = trainer._get_num_items_in_batch([batch], device())

        def step(batch=batch, counts=counts) -> None:
            trainer.training_step(trainer.model_wrapped, dict(batch), counts)
            trainer.model.zero_grad()

        step()
        trainer.optimizer.step()  # its states stand from here on
        timed: list[float] = []
        peak = peak_bytes(lambda step=step, timed=timed: timed.append(seconds_of(step, repeats)))
        seconds = timed[0]
        operations = weights * tokens[name]
        figures[name] = {
            "rows": len(plain),
            "tokens": tokens[name],
            "seconds": seconds,
            "tokens_per_second": tokens[name] / seconds,
            "share": (6 if trains_all else 4) * operations / seconds / matrix_rate,
            "peak_bytes": peak,
        }
        if checkpointing:
            share = (8 if trains_all else 6) * operations / seconds / matrix_rate
            figures[name]["share_with_recomputation"] = share
    gold = [BranchedExample(e.context_ids, e.context_labels, e.branches[:1]) for e in examples]
    assert gold[0].branches[0].kind == GOLD
    planned = planned_peaks(
        trainer.model.config, trainer.args, model_args, layout_of(gold), layout_of(examples), device().type == "cpu"
    )
    for name, phase in (("sft", "SFT"), ("joint", "iteration 1")):
        figures[name]["planned"] = planned[phase]
    if checkpointing:
        figures["rollouts"] = {
            "peak_bytes": peak_bytes(lambda: roll_out(trainer, examples)),
            "planned": planned["rollouts 1"],
        }
    return figures


def roll_out(trainer: BASHTrainer, examples: list[BranchedExample], beta: float = 0.2) -> None:
    """Mixes as many rows as make one full batch, with the trainer's own settings."""
    args = trainer.args
    engine = TransformersEngine(trainer.model, 1, args.rollout_batch_tokens, trainer.accelerator.autocast)
    row = examples[0]
    gold = row.branches[0].input_ids
    rows = max(1, args.rollout_batch_tokens // (len(row.context_ids) + len(gold) + 1))
    # The last position is drawn in each row: they are read to their end.
    masks = [[*(uniform(0, [i], len(gold))[0] < beta).tolist()[:-1], True] for i in range(rows)]
    engine.mix([row.context_ids] * rows, [gold] * rows, masks, SamplingOptions(seed=0))
