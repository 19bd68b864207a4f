"""DaD-DAgger against next-token distillation at equal tokens, by the KL from the teacher on the student's own states.

    python -m examples.own_states FOLDER            # FOLDER/investigators.jsonl, other_worlds.jsonl, …

The student is of the paper's kind (Pozzi 2025, Section 6): the whole SmolLM2-135M, with its last block and final norm trained. The
teacher is SmolLM2-135M with all weights fine-tuned on one domain. Every arm consumes the same number of tokens: trained,
generated, and read for labels. Each finished arm is a JSON file under `runs/own_states`: an interrupted run continues. `--report`
prints the table of what is there.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from trl_exbias.bench.statistics import paired_difference
from trl_exbias.cli.memory import keep_freed_memory
from trl_exbias.comparing.compute import read_compute
from trl_exbias.demo.embedded_model import embedded_model
from trl_exbias.evaluation.bootstrap import bootstrap_interval

from .story_domains import (
    CONTEXT,
    DOMAINS,
    HORIZON,
    ITERATIONS,
    Setup,
    measure,
    split_by_tokens,
    teacher_of,
    train,
    trajectories,
)


RUNS = Path("runs/own_states")
#: A student's labels are at 10 of a trajectory's 138 tokens; the teacher learns from nearly all of them.
TEACHER = {"context_length": 8, "rollout_length": CONTEXT + HORIZON - 8, "num_train_epochs": 1, "learning_rate": 1e-4}
STUDENT, BASELINE = "student", "next-token KD"


def arms_of(alphas: Sequence[float]) -> dict[str, dict[str, Any]]:
    """The student before training, DaD-DAgger at each alpha, and the baseline: last, since what the others consume is its budget."""
    dagger = {f"DaD-DAgger {a:g}": {"alpha": a, "num_iterations": ITERATIONS, "num_train_epochs": 4} for a in alphas}
    return {STUDENT: {}, **dagger, BASELINE: {"alpha": 0.0, "num_iterations": 1}}


def run_arm(
    name: str, arms: dict[str, dict[str, Any]], seed: int, parts: dict, tokenizer, setup: Setup, domain: str
) -> dict[str, Any]:
    """Trains an arm and measures it. An arm without settings is the student before training."""
    teacher, options = teacher_of(domain, parts, tokenizer, setup), dict(arms[name])
    set_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(setup.source)
    data = trajectories(parts["train"], setup.trajectories)
    folder, tokens = result_file(setup.runs, domain, seed, name).with_suffix(""), 0
    if name == BASELINE:
        others = [result_file(setup.runs, domain, seed, arm) for arm in arms if arm not in (STUDENT, BASELINE)]
        budget = max(json.loads(path.read_text(encoding="utf-8"))["tokens"] for path in others)
        # A trajectory's last token is never read; its labels are asked for once.
        an_epoch = len(data) * (CONTEXT + HORIZON - 1)
        options["num_train_epochs"] = budget / an_epoch - 1
    if options:
        train(
            model,
            tokenizer,
            data,
            folder,
            teacher=str(teacher),
            seed=seed,
            trainable_modules=setup.student_modules,
            **options,
        )
        tokens = read_compute(folder).tokens
    judge = AutoModelForCausalLM.from_pretrained(teacher).eval()
    return {"tokens": tokens} | measure(model.eval(), parts, setup.starts, judge)


def result_file(runs: Path, domain: str, seed: int, arm: str) -> Path:
    return runs / domain / f"seed-{seed}" / f"{arm.replace(' ', '-')}.json"


def results(runs: Path, domain: str, arm: str) -> dict[int, dict[str, Any]]:
    """Finished runs of an arm, by seed."""
    paths = {
        int(path.parent.name.split("-")[1]): path for path in runs.glob(f"{domain}/seed-*/{arm.replace(' ', '-')}.json")
    }
    return {seed: json.loads(path.read_text(encoding="utf-8")) for seed, path in sorted(paths.items())}


def report(runs: Path, arms: Iterable[str]) -> None:
    """The table of all finished arms. The difference to the baseline has two intervals: over starts, and over seeds."""
    print(
        "| domain | arm | seeds | tokens | perplexity | KL on own states | KL on gold states | difference on own states |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for domain in DOMAINS:
        baseline = results(runs, domain, BASELINE)
        for arm in arms:
            found = results(runs, domain, arm)
            if found:
                names = ("tokens", "perplexity", "kl_own", "kl_gold")
                means = {name: float(np.mean([np.mean(run[name]) for run in found.values()])) for name in names}
                cells = [f"{len(found)}", f"{means['tokens']:,.0f}", f"{means['perplexity']:.2f}"]
                cells += [f"{means['kl_own']:.4f}", f"{means['kl_gold']:.4f}"]
                print(f"| {domain} | {arm} | {' | '.join(cells)} | {_difference(found, baseline)} |")


def _difference(found: dict[int, dict[str, Any]], baseline: dict[int, dict[str, Any]]) -> str:
    """How far the KL on own states is from the baseline's, with an interval over starts and one over seeds."""
    both = [seed for seed in found if seed in baseline]
    if not both or found == baseline:
        return "–"
    own, beside = ({seed: np.array(runs[seed]["kl_own"]) for seed in both} for runs in (found, baseline))
    difference = np.mean([own[seed] - beside[seed] for seed in both], axis=0)
    low, high = bootstrap_interval(difference)
    over_seeds = paired_difference(
        *({seed: float(values.mean()) for seed, values in runs.items()} for runs in (own, beside))
    )
    share = difference.mean() / np.mean(list(beside.values()))
    return (
        f"{difference.mean():+.4f} ({share:+.1%}); over starts [{low:+.4f}, {high:+.4f}]; over seeds "
        f"± {over_seeds.half_width:.4f}"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--domains", nargs="+", default=DOMAINS, choices=DOMAINS)
    parser.add_argument("--alphas", nargs="+", type=float, default=(0.0, 0.5), help="those of DaD-DAgger")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trajectories", type=int, default=320, help="training trajectories of each domain")
    parser.add_argument("--starts", type=int, default=100, help="starts that are measured on the test part")
    parser.add_argument("--output", type=Path, default=RUNS)
    parser.add_argument("--report", action="store_true", help="print the table of what is there, train nothing")
    args = parser.parse_args()
    arms = arms_of(args.alphas)
    if not args.report:
        keep_freed_memory()
        setup = Setup(
            embedded_model(),
            runs=args.output,
            trajectories=args.trajectories,
            starts=args.starts,
            student_layers=None,
            teacher_modules=None,
            teacher_options=TEACHER,
        )
        tokenizer = AutoTokenizer.from_pretrained(setup.source)
        for domain in args.domains:
            parts = split_by_tokens(args.folder / f"{domain}.jsonl", tokenizer)
            for seed in range(args.seeds):
                for arm in arms:
                    path = result_file(setup.runs, domain, seed, arm)
                    # Before training, one seed is like another.
                    if path.is_file() or (seed and arm == STUDENT):
                        continue
                    found = run_arm(arm, arms, seed, parts, tokenizer, setup, domain)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(found), encoding="utf-8")
                    print(
                        f"{domain}, seed {seed}, {arm}: {found['tokens']:,} tokens, perplexity {found['perplexity']:.2f}, "
                        f"KL on own states {np.mean(found['kl_own']):.4f}",
                        flush=True,
                    )
    report(args.output, arms)


if __name__ == "__main__":
    main()
