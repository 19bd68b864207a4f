"""Run directories and evaluations as the commands leave them, without the hours."""

import json
from pathlib import Path

import numpy as np

from trl_exbias.evaluation.figures import Figure


CONFIG = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_length": 256,
    "num_train_epochs": 1.0,
    "sft_epochs": 1.0,
    "num_iterations": 1,
    "max_steps": -1,
    "bf16": False,
    "seed": 0,
    "model_init_kwargs": None,
}


def write_run(
    folder: Path,
    method: str = "BASH",
    own: dict | None = None,
    trained: tuple[int, ...] = (600, 1200),
    rolled_out: int = 300,
    data: str = "43b5f82a",
    seconds: dict[str, float] | None = None,
    logs: list[dict] = (),
    **run,
) -> Path:
    """A finished run of one step for each of `trained`, the logged count of tokens."""
    folder.mkdir(parents=True)
    config = {**CONFIG, **(own or {})}
    record = {
        "method": method,
        "model": "SmolLM2",
        "data": data,
        "rows": 48,
        "config": config,
        "seed": config["seed"],
        "world_size": 1,
        "versions": {"torch": "2.13.0", "transformers": "5.17.0", "trl": "1.16.0", "trl-exbias": "0.1.0"},
        "hardware": {"machine": "x86_64", "threads": 2, "accelerators": []},
        **run,
    }
    (folder / "run.json").write_text(json.dumps(record))
    lines = [{"step": step, "loss": 1.0, "num_tokens": count} for step, count in enumerate(trained, start=1)]
    seconds = {"sft": 10.0, "rollouts": 30.0, "joint": 20.0} if seconds is None else seconds
    lines += [{"step": len(trained), f"seconds/{phase}": value} for phase, value in seconds.items()]
    lines += [{"step": 1, "rollout/num_tokens": rolled_out}] * (rolled_out > 0)
    lines += logs
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def figure(name: str, mean: float, seed: int = 0, n: int = 60, spread: float = 0.3, **fields) -> Figure:
    """A figure over prompts whose values scatter about `mean`."""
    values = mean + spread * np.random.default_rng(seed).standard_normal(n)
    return Figure.over_prompts(name, {str(i): float(v) for i, v in enumerate(values)}, **fields)


HOSTILE = (
    "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
    "</pre></div><h1>taken over</h1>\n````\n```js\n{{ 7 * 7 }} ]]> & <!-- "
)


def content(**changes):
    """Four runs and the model they began from: RAC clearly better, BASH undecided, SPIN over the budget."""
    from trl_exbias.comparing.compute import Compute
    from trl_exbias.comparing.content import Content, Curve, Entry, EqualCompute, Sample

    def entry(name, method, seed, solved, ce, gap, compute):
        figures = {
            "likelihood/cross_entropy": figure("cross_entropy", ce, seed, higher_is_better=False),
            "likelihood/free_running": figure("free_running", ce + gap, seed + 10, higher_is_better=False),
            "likelihood/gap": figure("gap", gap, seed + 20, higher_is_better=False),
            "gsm8k/gsm8k_strict": figure("gsm8k_strict", solved, seed, spread=0.05),
            "degeneration/length": figure("length", 80.0, seed, higher_is_better=None),
        }
        mean = [gap * step / 4 for step in range(8)]
        curve = Curve(mean, [value - 0.1 for value in mean], [value + 0.1 for value in mean])
        own = {"beta": 0.2} if method == "bash" else {}
        return Entry(name, method, own, compute, figures, {"likelihood/gap": curve}, name)

    def compute(trained, generated=0, teacher=0, **more):
        seconds = {"sft": 60.0, **({"rollouts": 40.0, "joint": 80.0} if generated else {"joint": 110.0})}
        return Compute(trained, generated, teacher, 48, seconds, 200.0, 2_400_000_000, **more)

    entries = (
        entry("untrained", None, 0, 0.05, 1.9, 2.5, None),
        entry("sft", "sft", 1, 0.20, 0.70, 2.0, compute(15_100)),
        entry("bash", "bash", 2, 0.201, 0.69, 1.4, compute(13_000, 2_050)),
        entry("rac", "rac", 3, 0.40, 0.75, 1.2, compute(9_000, 3_000, 3_000)),
        entry("spin", "spin", 4, 0.10, 0.90, 2.2, compute(12_000, 3_500, 3_500, attempts=2)),
    )
    sample = Sample("How many?\nThink.", {e.name: f"{e.name} says 4" for e in entries} | {"rac": HOSTILE})
    fields = {
        "title": "Four methods on word problems",
        "entries": entries,
        "equal": EqualCompute("tokens", 15_000.0, 0.05),
        "samples": (sample,),
        "settings": {"shared": {"model_name_or_path": "SmolLM2-135M", "learning_rate": 1e-4}},
    }
    return Content(**{**fields, **changes})
