"""BASH and RAC on real rows: SmolLM2-135M on up to 256 rows of GSM8K and of SciTLDR, measured before and after.

    python -m examples.real_rows FOLDER         # with FOLDER/gsm8k and FOLDER/summarization_scitldr as .jsonl files

For each data set one SFT epoch with the recipe's command, then from that model one iteration of each method with
`--sft_epochs 0`. Rows are the first 256 (to measure: the first 32 of the test set) within a length that keeps this at
about an hour on 2 cores. Prints a row for each model.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path


TASKS = {
    "gsm8k": {"prompt": "{question}", "completion": "{answer}", "max_characters": 400, "bash": [], "rac": []},
    "summarization_scitldr": {
        "prompt": "{document}\n\nSummarize this abstract in one sentence.",
        "completion": "{summaries[0]}",
        "max_characters": 900,
        "bash": [],
        "rac": ["--correction_template", "summarization", "--max_new_tokens", "64"],
    },
}
ROWS, HELD_OUT = 256, 32
RUNS = Path("runs")


def short_rows(task: str, folder: Path, split: str, count: int) -> list[dict]:
    """The first rows of a split that are short enough."""
    with open(folder / task / f"{split}.jsonl", encoding="utf-8") as file:
        rows = map(json.loads, file)
        parts = ("prompt", "completion")
        short = (
            r for r in rows if sum(len(TASKS[task][p].format(**r)) for p in parts) <= TASKS[task]["max_characters"]
        )
        return [row for row, _ in zip(short, range(count), strict=False)]


def train(method: str, task: str, model: Path, output_dir: Path, *options: str) -> None:
    """The command of the method's recipe, with local data and a local model."""
    jinja = {part: TASKS[task][part].replace("{", "{{ ").replace("}", " }}") for part in ("prompt", "completion")}
    command = [
        *("exbias", method, "--config", f"recipes/{method}/smollm2-135m_gsm8k.yaml"),
        *("--model_name_or_path", str(model), "--dataset_name", str(RUNS / f"{task}.jsonl")),
        *("--output_dir", str(output_dir), "--overwrite_output_dir", "true"),
        *("--prompt_template", jinja["prompt"], "--completion_template", jinja["completion"], "--use_cpu", "true"),
        *options,
    ]
    with open(f"{output_dir}.log", "w", encoding="utf-8") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)


def measure(model_dir: Path, task: str, folder: Path) -> None:
    """Prints cross-entropies on held-out rows as JSON."""
    from dataclasses import asdict

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_exbias.chat.prompts import conversation_prompt_ids
    from trl_exbias.cli.memory import keep_freed_memory
    from trl_exbias.evaluation.responses import response_cross_entropy

    keep_freed_memory()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    prompts, gold = [], []
    for row in short_rows(task, folder, "test", HELD_OUT):
        prompt, completion = (TASKS[task][part].format(**row) for part in ("prompt", "completion"))
        prompts.append(conversation_prompt_ids(tokenizer, [{"role": "user", "content": prompt}], {}, None))
        gold.append(tokenizer(completion + tokenizer.eos_token, add_special_tokens=False)["input_ids"])
    print(json.dumps(asdict(response_cross_entropy(model, prompts, gold, tokenizer.pad_token_id))))


def report(name: str, model_dir: Path, task: str, folder: Path) -> None:
    """One row of the table."""
    command = [sys.executable, "-m", "examples.real_rows", str(folder), "--measure", str(model_dir), "--task", task]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"| {task} | {name} | {found['teacher_forced']:.3f} | {found['free_running']:.2f} |", flush=True)


def main(folder: Path) -> None:
    """All runs, one after the other."""
    from trl_exbias.demo.embedded_model import embedded_model

    base = embedded_model()
    RUNS.mkdir(exist_ok=True)
    print("| data | model | teacher-forced CE | free-running CE |\n|---|---|---|---|", flush=True)
    for task in TASKS:
        rows = short_rows(task, folder, "train", ROWS)
        (RUNS / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        report("before", base, task, folder)
        sft = RUNS / f"sft-{task}"
        train("bash", task, base, sft, "--num_iterations", "0")
        report("SFT", sft, task, folder)
        for method in ("bash", "rac"):
            train(method, task, sft, RUNS / f"{method}-{task}", "--sft_epochs", "0", *TASKS[task][method])
            report(method.upper(), RUNS / f"{method}-{task}", task, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.task, arguments.folder)
    else:
        main(arguments.folder)
