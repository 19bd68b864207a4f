"""BASH and RAC on real rows: SmolLM2-135M on 256 rows of GSM8K and of SciTLDR, measured before and after.

    python -m examples.real_rows FOLDER         # FOLDER/gsm8k and FOLDER/summarization_scitldr, as .jsonl files

Runs the commands of the recipes (about two hours on 2 cores), then prints one row a run.
"""

import subprocess
import sys
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_exbias.cli.memory import keep_freed_memory
from trl_exbias.data import conversation_prompt_ids
from trl_exbias.demo.embedded_model import embedded_model
from trl_exbias.evaluation.responses import response_cross_entropy


TASKS = {
    "gsm8k": {"prompt": "{question}", "completion": "{answer}", "options": {"bash": [], "rac": []}},
    "summarization_scitldr": {
        "prompt": "{document}\n\nSummarize this abstract in one sentence.",
        "completion": "{summaries[0]}",
        "options": {"bash": [], "rac": ["--correction_template", "summarization", "--max_new_tokens", "64"]},
    },
}
HELD_OUT = 32


def command(method: str, task: str, folder: Path, model: Path, output_dir: Path) -> list[str]:
    """The recipe of the method, with local data and a local model."""
    jinja = {part: TASKS[task][part].replace("{", "{{ ").replace("}", " }}") for part in ("prompt", "completion")}
    return [
        *("exbias", method, "--config", f"recipes/{method}/smollm2-135m_gsm8k.yaml"),
        *("--model_name_or_path", str(model), "--dataset_name", str(folder / task)),
        *("--dataset_train_split", "train[:256]", "--output_dir", str(output_dir), "--overwrite_output_dir", "true"),
        *("--prompt_template", jinja["prompt"], "--completion_template", jinja["completion"], "--use_cpu", "true"),
        *TASKS[task]["options"][method],
    ]


def measure(model_dir: Path, task: str, folder: Path):
    """Cross-entropies on held-out rows."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    rows = load_dataset("json", data_files=str(folder / task / "test.jsonl"), split=f"train[:{HELD_OUT}]")
    prompts, gold = [], []
    for row in rows:
        prompt, completion = (TASKS[task][part].format(**row) for part in ("prompt", "completion"))
        prompts.append(conversation_prompt_ids(tokenizer, [{"role": "user", "content": prompt}], {}, None))
        gold.append(tokenizer(completion + tokenizer.eos_token, add_special_tokens=False)["input_ids"])
    return response_cross_entropy(model, prompts, gold, tokenizer.pad_token_id)


def main(folder: Path) -> None:
    """All runs, then the table."""
    keep_freed_memory()
    base, lines = embedded_model(), []
    for task in TASKS:
        before = measure(base, task, folder)
        for method in ("bash", "rac"):
            output_dir = Path("runs") / f"{method}-{task}"
            subprocess.run(command(method, task, folder, base, output_dir), check=True)
            after = measure(output_dir, task, folder)
            lines.append(
                f"| {task} | {method} | {before.teacher_forced:.3f} → {after.teacher_forced:.3f} "
                f"| {before.free_running:.2f} → {after.free_running:.2f} | {after.num_tokens} |"
            )
            print(lines[-1], flush=True)
    print("| data | method | teacher-forced CE | free-running CE | label tokens |\n|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
