"""DaD-DAgger at five values of alpha against next-token distillation, at equal optimizer steps, on four story domains.

    python -m examples.story_domains FOLDER            # FOLDER/investigators.jsonl, other_worlds.jsonl, …

The set-up of the paper (Pozzi 2025, Section 6) at the size of a CPU: the teacher is SmolLM2-135M with its last block and final
norm fine-tuned on the domain; the student is 10 of its layers, first brought back to speech by distillation on all
domains, and then, in every arm, trained in its last block and final norm alone. Each finished arm is a JSON file under
`runs/story_domains`: an interrupted run continues. `--report` prints the table of what is there.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

from trl_exbias import DaDDaggerConfig, DaDDaggerTrainer
from trl_exbias.cli.memory import keep_freed_memory
from trl_exbias.demo.embedded_model import embedded_model
from trl_exbias.evaluation import perplexity
from trl_exbias.evaluation.bootstrap import bootstrap_interval
from trl_exbias.evaluation.free_running import free_runs
from trl_exbias.methods.dad_dagger.students import keep_layers
from trl_exbias.methods.dad_dagger.trajectories import starts


DOMAINS = ("investigators", "other_worlds", "strange_science", "time_travel")
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
CONTEXT, HORIZON, ITERATIONS = 128, 10, 3
RUNS = Path("runs/story_domains")


@dataclass(frozen=True)
class Setup:
    """
    The size of the experiment. By default that of a CPU.

    Args:
        source (`Path`): The model that teacher and student come from.
        runs (`Path`): Where runs and results go.
        trajectories (`int`, *optional*): Training trajectories of each domain; `None` for all.
        starts (`int`): Starts that are measured on the test part.
        student_layers (`int`, *optional*): Layers that the student keeps; `None` for a student that is the whole model.
        teacher_modules (`list[str]`, *optional*): The teacher's modules that are fine-tuned; `None` for all of it.
        teacher_options, options (`dict`): Settings of the teacher's run, and of every run.
    """

    source: Path
    runs: Path = RUNS
    trajectories: int | None = 400
    starts: int = 200
    student_layers: int | None = 10
    teacher_modules: list[str] | None = field(default_factory=lambda: ["model.layers.29", "model.norm"])
    teacher_options: dict[str, Any] = field(default_factory=lambda: {"num_train_epochs": 2})
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def student_modules(self) -> list[str]:
        """The student's last block and its final norm: what every arm trains."""
        layers = self.student_layers or AutoConfig.from_pretrained(self.source).num_hidden_layers
        return [f"model.layers.{layers - 1}", "model.norm"]


def split_by_tokens(path: Path, tokenizer) -> dict[str, list[list[int]]]:
    """Documents of a domain as token ids, in order, cut 80 / 10 / 10 by tokens (a document may be cut in two)."""
    documents = [
        tokenizer(json.loads(line)["text"])["input_ids"] for line in path.read_text(encoding="utf-8").splitlines()
    ]
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


def trajectories(documents: list[list[int]], count: int | None) -> Dataset:
    """`count` trajectories (or all), spread evenly over the documents, each a document of its own."""
    length = CONTEXT + HORIZON
    every = [(i, s) for i, ids in enumerate(documents) for s in starts(len(ids), length, HORIZON)]
    count = len(every) if count is None else min(count, len(every))
    chosen = [every[k] for k in np.linspace(0, len(every) - 1, count).round().astype(int)]
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


def teacher_of(domain: str, parts: dict, tokenizer, setup: Setup) -> Path:
    """The source model, fine-tuned on the domain."""
    folder = setup.runs / domain / "teacher"
    if not (folder / "config.json").is_file():
        model = AutoModelForCausalLM.from_pretrained(setup.source)
        options = {"alpha": 1.0, "num_iterations": 1, **setup.options, **setup.teacher_options}
        options["trainable_modules"] = setup.teacher_modules
        train(model, tokenizer, trajectories(parts["train"], setup.trajectories), folder / "run", **options)
        model.save_pretrained(folder)
    return folder


def base_student(all_parts: dict, tokenizer, setup: Setup) -> Path:
    """The model that every arm starts from: the source, or some of its layers distilled from all of them on every domain."""
    if setup.student_layers is None:
        return setup.source
    folder = setup.runs / "student"
    if not (folder / "config.json").is_file():
        set_seed(0)
        model = keep_layers(AutoModelForCausalLM.from_pretrained(setup.source), setup.student_layers)
        documents = [ids for parts in all_parts.values() for ids in parts["train"]]
        count = None if setup.trajectories is None else setup.trajectories * len(all_parts)
        # Long horizons: nearly every token of a row is a target, which is the cheapest way to learn to speak.
        options = {"alpha": 0.5, "num_iterations": 1, "num_train_epochs": 2, "learning_rate": 5e-4}
        options |= {"context_length": 8, "rollout_length": CONTEXT + HORIZON - 8}
        train(model, tokenizer, trajectories(documents, count), folder / "run", teacher=str(setup.source), **options)
        model.save_pretrained(folder)
    return folder


def held_out_starts(parts: dict, count: int | None = None) -> list[tuple[list[int], list[int]]]:
    """Contexts and horizons of the test part: every one, or `count` spread evenly over it."""
    length = CONTEXT + HORIZON
    every = [(ids, s) for ids in parts["test"] for s in starts(len(ids), length, 1)]
    if count is not None:
        every = [every[k] for k in np.linspace(0, len(every) - 1, count).round().astype(int)]
    return [(ids[s : s + CONTEXT], ids[s + CONTEXT : s + length]) for ids, s in every]


def measure(model, parts: dict, num_starts: int, teacher=None) -> dict:
    """
    Per start, means over the horizon: teacher-forced and free-running CE, and with a teacher the KL from it on own and on gold
    states; and sliding perplexity.
    """
    contexts, horizons = zip(*held_out_starts(parts, num_starts), strict=True)
    runs = free_runs(model, contexts, horizons, num_samples=4, seed=0, teacher=teacher)
    stride = max(1, len(held_out_starts(parts)) // num_starts)
    found = perplexity(model, parts["test"], CONTEXT, stride=stride)
    by_start = (
        {} if teacher is None else {name: getattr(runs, name).mean(axis=1).tolist() for name in ("kl_own", "kl_gold")}
    )
    return by_start | {
        "teacher_forced": runs.teacher_forced.mean(axis=1).tolist(),
        "free_running": runs.free_running.mean(axis=1).tolist(),
        "gap_by_step": (runs.free_running - runs.teacher_forced).mean(axis=0).tolist(),
        "nats": found.nats,
        "perplexity": found.perplexity,
    }


def arms_of(alphas: tuple[float, ...] = ALPHAS) -> dict[str, dict[str, Any]]:
    """Next-token distillation, and DaD-DAgger at each alpha in as many epochs."""
    found = {"next-token KD": {"alpha": 0.5, "num_iterations": 1, "num_train_epochs": 2 * ITERATIONS}}
    for alpha in alphas:
        found[f"DaD-DAgger {alpha}"] = {"alpha": alpha, "num_iterations": ITERATIONS, "num_train_epochs": 2}
    return found


def run_arm(name: str, options: dict[str, Any] | None, domain: str, all_parts: dict, tokenizer, setup: Setup) -> dict:
    """Trains an arm and measures it; without `options`, measures the teacher or the student as it is."""
    parts, folder = all_parts[domain], setup.runs / domain
    teacher, student = teacher_of(domain, parts, tokenizer, setup), base_student(all_parts, tokenizer, setup)
    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(teacher if name == "teacher" else student)
    if options is not None:
        options = {**setup.options, **options, "trainable_modules": setup.student_modules}
        options["soft_label_dir"] = str(folder / "soft-labels")
        data = trajectories(parts["train"], setup.trajectories)
        train(model, tokenizer, data, folder / "run", teacher=str(teacher) if options["alpha"] < 1 else None, **options)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    return {"trajectories": setup.trajectories, **measure(model.eval(), parts, setup.starts)}


def run_domain(domain: str, all_parts: dict, tokenizer, setup: Setup) -> None:
    """Teacher, base student, and every arm that is not on disk yet."""
    for name, options in {"teacher": None, "student": None, **arms_of()}.items():
        result = setup.runs / domain / f"{name.replace(' ', '-')}.json"
        if result.is_file():
            continue
        found = run_arm(name, options, domain, all_parts, tokenizer, setup)
        result.write_text(json.dumps(found), encoding="utf-8")
        print(f"{domain}, {name}: perplexity {found['perplexity']:.2f}, "
              f"free-running {np.mean(found['free_running']):.3f}", flush=True)  # fmt: skip


def report() -> None:
    """The table of all finished arms; the difference to next-token KD is paired by start."""
    print("| domain | arm | perplexity | teacher-forced CE | free-running CE | against next-token KD [95 %] |")
    print("|---|---|---|---|---|---|")
    for domain in DOMAINS:
        found = {
            path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((RUNS / domain).glob("*.json"))
        }
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
        setup = Setup(embedded_model(), trajectories=args.trajectories, starts=args.starts)
        tokenizer = AutoTokenizer.from_pretrained(setup.source)
        parts = {domain: split_by_tokens(args.folder / f"{domain}.jsonl", tokenizer) for domain in DOMAINS}
        for domain in args.domains:
            run_domain(domain, parts, tokenizer, setup)
    report()


if __name__ == "__main__":
    main()
