"""Part 2: SmolLM2 on GSM8K: SFT, then at equal tokens more SFT, BASH, RAC and SPIN; answers of test rows."""

import contextlib
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PrinterCallback

from trl_exbias import BASHConfig, BASHTrainer, RACConfig, RACTrainer, SPINConfig, SPINTrainer
from trl_exbias.chat.prompts import conversation_prompt_ids
from trl_exbias.chat.stop_tokens import stop_token_ids
from trl_exbias.comparing.compute import trained_tokens
from trl_exbias.demo.embedded_model import embedded_model_folder
from trl_exbias.demo.word_problems import word_problems
from trl_exbias.evaluation import gsm8k_correct
from trl_exbias.evaluation.bootstrap import bootstrap_interval
from trl_exbias.evaluation.responses import response_cross_entropy
from trl_exbias.methods.rac_template import CorrectionTemplate
from trl_exbias.rollouts import SamplingOptions, TransformersEngine

from .common import QUIET, arguments, device, precision
from .parts import data_folder
from .results import Results


#: Arms in order of value: trainer, configuration, settings.
ARMS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "more SFT": (BASHTrainer, BASHConfig, {"num_iterations": 0}),
    "BASH 0.5": (BASHTrainer, BASHConfig, {"beta": 0.5, "num_iterations": 2}),
    "BASH 0.2": (BASHTrainer, BASHConfig, {"beta": 0.2}),
    "RAC": (RACTrainer, RACConfig, {}),
    "SPIN": (SPINTrainer, SPINConfig, {"sft_weight": 1.0}),
}
BASELINE = "more SFT"
#: Sizes with which SFT and the first three arms of a seed should take 200 s of an H200, calculated with 50 ms for a forward of
#: SmolLM2's 30 layers, which the host bounds, and 120 ms for a training step. Measuring an arm is 200 forwards for its answers and
#: about as many for its cross-entropies: 20 s. Training it is 128 steps at most, and 10 s of loading and preparing data. All 1,319
#: answers of 256 tokens with the cross-entropies of 256 rows took too long for a single arm.
FULL = {
    "seeds": 3,
    "rows": 2048,
    "test_rows": 660,
    "ce_rows": 48,  # one batch
    "ce_tokens": 128,  # of each response
    "batch": 64,
    "learning_rate": 2e-4,
    "max_new_tokens": 200,
    "rollout_batch_tokens": 524_288,
    "budget_epochs": 4.0,  # RAC reads its template and its answer for labels: it needs as much for one epoch
    "model": None,
}
DRY = {
    **FULL,
    "seeds": 1,
    "rows": 12,
    "test_rows": 4,
    "ce_rows": 2,
    "batch": 4,
    "max_new_tokens": 6,
    "rollout_batch_tokens": 2048,
    "budget_epochs": 6.0,
    "model": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
}


class Task:
    """Data, tokenizer and settings of the part."""

    def __init__(self, sizes: dict[str, Any]):
        self.sizes = sizes
        self.tokenizer = AutoTokenizer.from_pretrained(embedded_model_folder())
        is_dry = sizes["model"] is not None
        self.train, self.test = (_toy_rows if is_dry else _gsm8k_rows)(sizes["rows"], sizes["test_rows"])

    def base_model(self, seed: int) -> torch.nn.Module:
        """SmolLM2; in a dry run a tiny one with its vocabulary."""
        if self.sizes["model"] is None:
            return AutoModelForCausalLM.from_pretrained(embedded_model_folder(), dtype=torch.float32)
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(self.tokenizer), **self.sizes["model"]))

    def prompt_ids(self, rows: Dataset) -> list[list[int]]:
        return [conversation_prompt_ids(self.tokenizer, row["prompt"], {}, None) for row in rows]

    def gold_ids(self, rows: Dataset) -> list[list[int]]:
        text = [row["completion"][0]["content"] + self.tokenizer.eos_token for row in rows]
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def _gsm8k_rows(rows: int | None, test_rows: int | None) -> tuple[Dataset, Dataset]:
    folder = data_folder() / "gsm8k"
    return tuple(
        _as_conversations(
            [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()][:count]
        )
        for name, count in (("train.jsonl", rows), ("test.jsonl", test_rows))
    )


def _as_conversations(rows: list[dict[str, str]]) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["question"]}],
                "completion": [{"role": "assistant", "content": row["answer"]}],
            }
            for row in rows
        ]
    )


def _toy_rows(rows: int, test_rows: int) -> tuple[Dataset, Dataset]:
    return tuple(word_problems(count, seed).remove_columns("answer") for count, seed in ((rows, 0), (test_rows, 1)))


def train(
    task: Task, make_model: Callable, arm: str, epochs: float, seed: int
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Trains an arm for `epochs` of each phase; returns the model and what it consumed."""
    trainer_class, config_class, settings = ARMS[arm]
    rolls_out = settings.get("num_iterations", 1) > 0
    settings = settings | ({"sft_epochs": 0, "num_train_epochs": epochs} if rolls_out else {"sft_epochs": epochs})
    if "max_new_tokens" in config_class.__dataclass_fields__:
        settings["max_new_tokens"] = task.sizes["max_new_tokens"]
    options = {
        "per_device_train_batch_size": task.sizes["batch"],
        "learning_rate": task.sizes["learning_rate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "gradient_checkpointing": False,
        "max_length": 1024,
        "rollout_batch_tokens": task.sizes["rollout_batch_tokens"],
        "completion_only_loss": True,
    }
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        args = config_class(folder, seed=seed, **{**QUIET, **precision(), **options, **settings})
        trainer = trainer_class(
            model=make_model(), args=args, train_dataset=task.train, processing_class=task.tokenizer
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    logs = trainer.state.log_history
    consumed = {
        "trained": trained_tokens(logs),
        "generated": _logged(logs, "rollout/num_tokens"),
        "labels": _logged(logs, "teacher/num_tokens"),
        "steps": trainer.state.global_step,
        "seconds": time.perf_counter() - started,
        "rollout_seconds": sum(entry.get("seconds/rollouts", 0) for entry in logs),
    }
    rates = {key: entry[key] for entry in logs for key in entry if key.endswith(("changed_rate", "correction_rate"))}
    return trainer.model.eval(), {**consumed, **rates}


def _logged(logs: list[dict[str, Any]], key: str) -> int:
    return int(sum(entry.get(key, 0) for entry in logs))


def epochs_at_equal_tokens(task: Task) -> dict[str, float]:
    """Epochs of an iteration with which each arm consumes as many tokens; own responses are taken to be as long as gold."""
    prompts, responses = (sum(map(len, ids)) for ids in (task.prompt_ids(task.train), task.gold_ids(task.train)))
    template = CorrectionTemplate("qa")
    seen = task.train.select(range(min(200, len(task.train))))
    corrections = sum(len(template.context_ids(row, task.tokenizer)) for row in seen) * len(task.train) / len(seen)
    an_epoch, budget = prompts + responses, task.sizes["budget_epochs"] * (prompts + responses)
    between = {"BASH": responses, "RAC": 2 * responses + corrections, "SPIN": 3 * responses + 2 * prompts}
    epochs = {}
    for arm, (_, _, settings) in ARMS.items():
        iterations = settings.get("num_iterations", 1)
        if iterations == 0:
            epochs[arm] = budget / an_epoch
        else:
            epochs[arm] = (budget / iterations - between[arm.split()[0]]) / (an_epoch + responses)
    return epochs


def measure(task: Task, model: torch.nn.Module) -> dict[str, Any]:
    """Greedy answers row by row, and cross-entropies."""
    prompts, gold = task.prompt_ids(task.test), task.gold_ids(task.test)
    mixed = torch.autocast("cuda", torch.bfloat16) if device().type == "cuda" else contextlib.nullcontext()
    stops = stop_token_ids(task.tokenizer, model.generation_config, None)
    options = SamplingOptions(temperature=0, max_new_tokens=task.sizes["max_new_tokens"], stop_token_ids=stops)
    with mixed:
        engine = TransformersEngine(model, task.tokenizer.pad_token_id, task.sizes["rollout_batch_tokens"])
        answers = task.tokenizer.batch_decode(engine.sample(prompts, options), skip_special_tokens=True)
        count = task.sizes["ce_rows"]
        gold = [row[: task.sizes["ce_tokens"]] for row in gold[:count]]
        found = response_cross_entropy(model, prompts[:count], gold, task.tokenizer.pad_token_id)
    right = [
        gsm8k_correct(answer, row["completion"][0]["content"]) for answer, row in zip(answers, task.test, strict=True)
    ]
    return {
        "accuracy": float(np.mean(right)),
        "right": "".join("01"[is_right] for is_right in right),  # row by row
        "teacher_forced": found.teacher_forced,
        "free_running": found.free_running,
    }


def run(results: Results, sizes: dict[str, Any]) -> None:
    """Every seed and arm that is not there yet."""
    task = Task(sizes)
    epochs = epochs_at_equal_tokens(task)
    for seed in range(sizes["seeds"]):
        start = results.path.parent / f"gsm8k-start-{seed}"
        if f"SFT, seed {seed}" not in results or not (start / "model.safetensors").is_file():
            model, consumed = train(task, partial(task.base_model, seed), BASELINE, 1.0, seed)
            model.save_pretrained(start)
            results.put(f"SFT, seed {seed}", {"consumed": consumed, **measure(task, model)})
        for arm in ARMS:
            key = f"{arm}, seed {seed}"
            if key in results:
                continue
            model, consumed = train(task, partial(_load, start), arm, epochs[arm], seed + 100)
            results.put(key, {"consumed": consumed, "epochs": epochs[arm], **measure(task, model)})
            results.put("against more SFT", differences(results.content["figures"], sizes["seeds"]))
        if "before" not in results:
            results.put("before", measure(task, task.base_model(0).to(device()).eval()))
    results.finish()


def _load(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def differences(figures: dict[str, Any], seeds: int) -> dict[str, Any]:
    """Points of accuracy against the baseline, paired by test row and averaged over the seeds that are there."""
    found = {}
    for arm in ARMS:
        pairs = [
            _right(figures[f"{arm}, seed {seed}"]) - _right(figures[f"{BASELINE}, seed {seed}"])
            for seed in range(seeds)
            if f"{arm}, seed {seed}" in figures and f"{BASELINE}, seed {seed}" in figures
        ]
        if pairs and arm != BASELINE:
            by_row = np.mean(pairs, axis=0)
            found[arm] = {
                "seeds": len(pairs),
                "difference": float(by_row.mean()),
                "interval": bootstrap_interval(by_row).tolist(),
            }
    return found


def _right(figure: dict[str, Any]) -> np.ndarray:
    return np.array([int(sign) for sign in figure["right"]])


def main() -> None:
    path, dry_run = arguments(__doc__)
    sizes = DRY if dry_run else FULL
    run(Results(path, sizes), sizes)


if __name__ == "__main__":
    main()
