"""Part 3: DaD-DAgger against next-token distillation on the story domains, at the paper's size, an alpha after another."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from examples.story_domains import ALPHAS, DOMAINS, Setup, arms_of, run_arm, split_by_tokens
from trl_exbias.demo.embedded_model import embedded_model_folder
from trl_exbias.demo.word_problems import word_problems
from trl_exbias.evaluation.bootstrap import bootstrap_interval

from .common import QUIET, arguments, precision
from .parts import data_folder
from .results import Results


BASELINE = "next-token KD"
#: The teacher is the whole model fine-tuned on the domain, the student the whole model with its last block and norm trained.
FULL: dict[str, Any] = {
    "domains": list(DOMAINS),
    # The middle first: a run that is cut off has what tells most.
    "alphas": sorted(ALPHAS, key=lambda alpha: abs(alpha - 0.5)),
    "trajectories": None,
    "starts": 1000,
    "batch": 64,
    "learning_rate": 1e-4,
    "rollout_batch_tokens": 262_144,
    "model": None,
}
DRY: dict[str, Any] = {
    **FULL,
    "domains": ["toy"],
    "alphas": [0.5, 1.0],
    "trajectories": 6,
    "starts": 3,
    "batch": 4,
    "rollout_batch_tokens": 2048,
    "model": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
}


def setup_of(sizes: dict[str, Any], runs: Path) -> Setup:
    """The experiment's sizes; in a dry run with a tiny model that has SmolLM2's vocabulary."""
    source = embedded_model_folder()
    tokenizer = AutoTokenizer.from_pretrained(source)
    if sizes["model"] is not None:
        source = runs / "model"
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **sizes["model"])).save_pretrained(
            source
        )
        tokenizer.save_pretrained(source)
    quiet = {key: value for key, value in QUIET.items() if key != "max_degenerate_rate"}
    options = {
        **quiet,
        **precision(),
        "per_device_train_batch_size": sizes["batch"],
        "learning_rate": sizes["learning_rate"],
        "rollout_batch_tokens": sizes["rollout_batch_tokens"],
    }
    return Setup(
        source,
        runs,
        sizes["trajectories"],
        sizes["starts"],
        student_layers=None,
        teacher_modules=None,
        teacher_options={"num_train_epochs": 2, "learning_rate": sizes["learning_rate"] / 2},
        options=options,
    )


def documents_of(sizes: dict[str, Any], tokenizer) -> dict[str, dict[str, list[list[int]]]]:
    """The domains' documents, cut 80 / 10 / 10; in a dry run a text made of word problems."""
    if sizes["model"] is None:
        return {
            name: split_by_tokens(data_folder() / "story_domains" / f"{name}.jsonl", tokenizer)
            for name in sizes["domains"]
        }
    text = " ".join(row["completion"][0]["content"] for row in word_problems(40, seed=0))
    ids = tokenizer(text)["input_ids"]
    return {"toy": {"train": [ids[:400]], "validation": [ids[400:560]], "test": [ids[560:760]]}}


def run(results: Results, sizes: dict[str, Any]) -> None:
    """Every domain and arm that is not there yet, one domain after another."""
    runs = results.path.parent / "stories-runs"
    runs.mkdir(parents=True, exist_ok=True)
    setup = setup_of(sizes, runs)
    tokenizer = AutoTokenizer.from_pretrained(setup.source)
    parts = documents_of(sizes, tokenizer)
    for domain in sizes["domains"]:
        for arm, options in {"teacher": None, "student": None, **arms_of(tuple(sizes["alphas"]))}.items():
            key = f"{domain}, {arm}"
            if key not in results:
                results.put(key, run_arm(arm, options, domain, parts, tokenizer, setup))
                results.put(
                    f"{domain}, against {BASELINE}", differences(results.content["figures"], domain, sizes["alphas"])
                )
    results.finish()


def differences(figures: dict[str, Any], domain: str, alphas: list[float]) -> dict[str, Any]:
    """Free-running cross-entropy against next-token distillation, paired by start."""
    baseline, found = figures.get(f"{domain}, {BASELINE}"), {}
    for arm in arms_of(tuple(alphas)):
        measured = figures.get(f"{domain}, {arm}")
        if arm != BASELINE and baseline is not None and measured is not None:
            by_start = np.subtract(measured["free_running"], baseline["free_running"])
            found[arm] = {"difference": float(by_start.mean()), "interval": bootstrap_interval(by_start).tolist()}
    return found


def main() -> None:
    path, dry_run = arguments(__doc__)
    sizes = DRY if dry_run else FULL
    run(Results(path, sizes), json.loads(json.dumps(sizes)))


if __name__ == "__main__":
    main()
