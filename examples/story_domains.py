"""DaD-DAgger at five values of alpha against next-token distillation, at equal optimizer steps, on four story domains.

    python -m examples.story_domains FOLDER            # FOLDER/investigators.jsonl, other_worlds.jsonl, …

The set-up of the paper (000, Section 6) at the size of a CPU: the teacher is SmolLM2-135M with its last block and final
norm fine-tuned on the domain; the student is 10 of its layers, first brought back to speech by distillation on all
domains, and then, in every arm, trained in its last block and final norm alone. Each finished arm is a JSON file under
`runs/story_domains`: an interrupted run goes on. `--report` prints the table of what is there.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from trl_exbias import DaDDaggerConfig, DaDDaggerTrainer
from trl_exbias.cli.memory import keep_freed_memory
from trl_exbias.demo.embedded_model import embedded_model
from trl_exbias.evaluation import perplexity
from trl_exbias.evaluation.bootstrap import bootstrap_interval
from trl_exbias.evaluation.free_running import free_runs
from trl_exbias.students import keep_layers
from trl_exbias.trajectories import starts


DOMAINS = ("investigators", "other_worlds", "strange_science", "time_travel")
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
CONTEXT, HORIZON, LAYERS, ITERATIONS = 128, 10, 10, 3
RUNS = Path("runs/story_domains")


def split_by_tokens(path: Path, tokenizer) -> dict[str, list[list[int]]]:
    """Documents of a domain as token ids, in order, cut 80 / 10 / 10 by tokens (a document may be cut in two)."""
    documents = [tokenizer(json.loads(line)["text"])["input_ids"] for line in path.read_text().splitlines()]
    total = sum(map(len, documents))
    bounds, parts, seen = {"train": 0.8 * total, "validation": 0.9 * total, "test": total}, {}, 0
    for name in bounds:
        parts[name] = []
    for ids in documents:
        for name, bound in bounds.items():
            room = max(0, int(bound) - seen) if name != "test" else len(ids)
            head, ids = ids[:room], ids[room:]
            seen += len(head)
            if head:
                parts[name].append(head)
    return parts


def trajectories(documents: list[list[int]], count: int) -> Dataset:
    """`count` trajectories, spread evenly over the documents, each a document of its own."""
    length = CONTEXT + HORIZON
    every = [(i, s) for i, ids in enumerate(documents) for s in starts(len(ids), length, HORIZON)]
    chosen = [every[k] for k in np.linspace(0, len(every) - 1, min(count, len(every))).round().astype(int)]
    return Dataset.from_list([{"input_ids": documents[i][s : s + length]} for i, s in chosen])


def train(model, tokenizer, data: Dataset, folder: Path, teacher=None, **options) -> None:
    """A run of the trainer; the model is changed in place."""
    settings = {
        "context_length": CONTEXT,
        "rollout_length": HORIZON,
        "iteration_patience": None,  # equal optimizer steps for all arms
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 16,
        "gradient_checkpointing": False,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": not torch.accelerator.is_available(),
        "num_rollouts_to_print": 0,
        "overwrite_output_dir": True,
    }
    args = DaDDaggerConfig(str(folder), **{**settings, **options})
    DaDDaggerTrainer(
        model=model, teacher_model=teacher, args=args, train_dataset=data, processing_class=tokenizer
    ).train()


def teacher_of(domain: str, parts: dict, tokenizer, count: int) -> Path:
    """SmolLM2-135M with its last block and final norm fine-tuned on the domain."""
    folder = RUNS / domain / "teacher"
    if not (folder / "config.json").is_file():
        model = AutoModelForCausalLM.from_pretrained(embedded_model())
        modules = ["model.layers.29", "model.norm"]
        train(model, tokenizer, trajectories(parts["train"], count), folder / "run", alpha=1.0, num_iterations=1,
              num_train_epochs=2, trainable_modules=modules)  # fmt: skip
        model.save_pretrained(folder)
    return folder


def base_student(all_parts: dict, tokenizer, count: int) -> Path:
    """10 layers of SmolLM2-135M, distilled from all 30 on every domain: a small pre-trained model, alike in all arms."""
    folder = RUNS / "student"
    if not (folder / "config.json").is_file():
        set_seed(0)
        source = embedded_model()
        model = keep_layers(AutoModelForCausalLM.from_pretrained(source), LAYERS)
        documents = [ids for parts in all_parts.values() for ids in parts["train"]]
        # Long horizons: nearly every token of a row is a target, which is the cheapest way to learn to speak.
        data = trajectories(documents, count * len(all_parts))
        train(model, tokenizer, data, folder / "run", teacher=str(source), alpha=0.5, num_iterations=1,
              num_train_epochs=2, context_length=8, rollout_length=CONTEXT + HORIZON - 8, learning_rate=5e-4)  # fmt: skip
        model.save_pretrained(folder)
    return folder


def measure(model, parts: dict, num_starts: int) -> dict:
    """Per start: teacher-forced and free-running CE, means over the horizon; and sliding perplexity."""
    length = CONTEXT + HORIZON
    every = [(ids, s) for ids in parts["test"] for s in starts(len(ids), length, 1)]
    chosen = [every[k] for k in np.linspace(0, len(every) - 1, num_starts).round().astype(int)]
    contexts = [ids[s : s + CONTEXT] for ids, s in chosen]
    horizons = [ids[s + CONTEXT : s + length] for ids, s in chosen]
    runs = free_runs(model, contexts, horizons, num_samples=4, seed=0)
    found = perplexity(model, parts["test"], CONTEXT, stride=max(1, len(every) // num_starts))
    return {
        "teacher_forced": runs.teacher_forced.mean(axis=1).tolist(),
        "free_running": runs.free_running.mean(axis=1).tolist(),
        "gap_by_step": (runs.free_running - runs.teacher_forced).mean(axis=0).tolist(),
        "nats": found.nats,
        "perplexity": found.perplexity,
    }


def run_domain(domain: str, all_parts: dict, tokenizer, count: int, num_starts: int) -> None:
    """Teacher, base student, and every arm that is not on disk yet."""
    parts, folder = all_parts[domain], RUNS / domain
    teacher, student = teacher_of(domain, parts, tokenizer, count), base_student(all_parts, tokenizer, count)
    data = trajectories(parts["train"], count)
    arms = {
        "teacher": None,
        "student": None,
        "next-token KD": {"alpha": 0.5, "num_iterations": 1, "num_train_epochs": 6},
    }
    arms |= {
        f"DaD-DAgger {alpha}": {"alpha": alpha, "num_iterations": ITERATIONS, "num_train_epochs": 2} for alpha in ALPHAS
    }
    for name, options in arms.items():
        result = folder / f"{name.replace(' ', '-')}.json"
        if result.is_file():
            continue
        set_seed(0)
        model = AutoModelForCausalLM.from_pretrained(teacher if name == "teacher" else student)
        if options is not None:
            train(
                model,
                tokenizer,
                data,
                folder / "run",
                teacher=str(teacher) if options["alpha"] < 1 else None,
                trainable_modules=[f"model.layers.{LAYERS - 1}", "model.norm"],
                soft_label_dir=str(folder / "soft-labels"),
                **options,
            )
        found = {"trajectories": count, **measure(model.eval(), parts, num_starts)}
        result.write_text(json.dumps(found))
        print(f"{domain}, {name}: perplexity {found['perplexity']:.2f}, "
              f"free-running {np.mean(found['free_running']):.3f}", flush=True)  # fmt: skip


def report() -> None:
    """The table of all finished arms; the difference to next-token KD is paired by start."""
    print("| domain | arm | perplexity | teacher-forced CE | free-running CE | against next-token KD [95 %] |")
    print("|---|---|---|---|---|---|")
    for domain in DOMAINS:
        found = {path.stem: json.loads(path.read_text()) for path in sorted((RUNS / domain).glob("*.json"))}
        reference = found.get("next-token-KD")
        for name, arm in found.items():
            free = np.array(arm["free_running"])
            cells = [f"{arm['perplexity']:.2f}", f"{np.mean(arm['teacher_forced']):.3f}", f"{free.mean():.3f}"]
            against = "–"
            if reference is not None and name not in ("teacher", "student", "next-token-KD"):
                difference = free - np.array(reference["free_running"])
                low, high = bootstrap_interval(difference)
                share = difference.mean() / np.mean(reference["free_running"])
                against = f"{difference.mean():+.3f} [{low:+.3f}, {high:+.3f}] ({share:+.1%})"
            print(f"| {domain} | {name.replace('-', ' ')} | {' | '.join(cells)} | {against} |")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--domains", nargs="+", default=DOMAINS, choices=DOMAINS)
    parser.add_argument("--trajectories", type=int, default=400, help="training trajectories of each domain")
    parser.add_argument("--starts", type=int, default=200, help="starts that are measured on the test part")
    parser.add_argument("--report", action="store_true", help="print the table of what is there, train nothing")
    args = parser.parse_args()
    if not args.report:
        keep_freed_memory()
        tokenizer = AutoTokenizer.from_pretrained(embedded_model())
        parts = {domain: split_by_tokens(args.folder / f"{domain}.jsonl", tokenizer) for domain in DOMAINS}
        for domain in args.domains:
            run_domain(domain, parts, tokenizer, args.trajectories, args.starts)
    report()


if __name__ == "__main__":
    main()
