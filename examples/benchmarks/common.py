"""What the benchmarks share: the model, the rows, and a timer that alternates its contestants."""

import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.cli.memory import keep_freed_memory
from trl_exbias.demo.embedded_model import embedded_model
from trl_exbias.demo.word_problems import word_problems


_DATA = Path(__file__).parents[3] / "shared" / "data"
#: Files of questions and answers: their path, the names of the two columns, and what to call them.
_PAIRS = {
    "gsm8k": (_DATA / "gsm8k" / "train.jsonl", "question", "answer", "GSM8K"),
    "math": (_DATA / "math" / "math_pool1500.jsonl", "problem", "solution", "MATH"),
}
GSM8K = _PAIRS["gsm8k"][0]


#: Settings of every run that is timed.
QUIET = {
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}


class StepTimes(TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.started)


def load_model():
    """SmolLM2-135M-Instruct in float32, and its tokenizer."""
    keep_freed_memory()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    folder = embedded_model()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


@contextlib.contextmanager
def step_trainer(model, tokenizer) -> Iterator[BASHTrainer]:
    """A trainer whose `training_step` and collator are timed on batches that are handed to them."""
    with tempfile.TemporaryDirectory() as folder:
        args = BASHConfig(folder, report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False)
        rows = Dataset.from_list([{"prompt": "a", "completion": " b"}])
        trainer = BASHTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 1
        yield trainer


def chat_pairs(num_rows: int, name: str = "gsm8k") -> tuple[list[tuple[str, str]], str]:
    """Questions and answers of GSM8K or MATH if the file is there, else of the demo's word problems; and which it was."""
    path, question, answer, title = _PAIRS[name]
    if path.is_file():
        with open(path, encoding="utf-8") as file:
            return [(row[question], row[answer]) for row in map(json.loads, file)][:num_rows], title
    rows = word_problems(num_rows, seed=0)
    return [(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in rows], "word problems"


def chat_rows(num_rows: int, tokenizer, name: str = "gsm8k") -> tuple[list[list[int]], list[list[int]], str]:
    """The rows of `chat_pairs` as token ids, and which they are."""
    pairs, title = chat_pairs(num_rows, name)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True)["input_ids"]
        for q, _ in pairs
    ]
    responses = [tokenizer(a + tokenizer.eos_token + "\n", add_special_tokens=False)["input_ids"] for _, a in pairs]
    return prompts, responses, title


def alternate(contestants: dict[str, Callable[[], object]], repeats: int, warm: bool = False) -> dict[str, float]:
    """
    Median seconds of each contestant, taken in turns, so that a slow spell hits all alike; after a warm-up turn, unless they are
    `warm` already.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warm, repeats + 1):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_extra_bytes(module: str, *arguments: str) -> int:
    """What `print_peak` prints in a process of its own, which runs a benchmark's module with these arguments."""
    command = [sys.executable, "-m", f"examples.benchmarks.{module}", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_peak(run: Callable[[], object]) -> None:
    """Resident memory at its highest during a run, less what was there before, in bytes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the kernel's peak counter starts over
    before = memory("VmRSS")
    run()
    print(memory("VmHWM") - before)


def memory(counter: str) -> int:
    """A counter of `/proc/self/status`, in bytes. (`ru_maxrss` would be the parent's peak, where that is higher.)"""
    return 1024 * int(re.search(rf"{counter}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))[1])


def report(title: str, ratio: float, goal: str, details: str) -> None:
    """One line a figure."""
    print(f"{title:<66} {ratio:>6.2f}   (goal {goal}; {details})", flush=True)
