"""Every trainer in bfloat16 on the device: it trains, it resumes, and what runs of one seed have in common is measured."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from datasets import Dataset

import trl_exbias
from trl_exbias.run.rollout_store import RolloutStore

from ..loop.runs import config, logged, trainer, weights
from ..tiny import conversations, tiny_model
from .device import ON_CUDA, distance


STORIES = [{"text": f"The fox went out on night {i} and prayed to the moon."} for i in range(3)]
#: Options by method: three steps of SFT (or of the first iteration), a rollout phase where there is one, three joint steps.
METHODS = {
    "BASH": {"beta": 0.3},
    "RAC": {"correction_template": "{{ prompt }} (answer: {{ reference }})", "max_new_tokens": 10},
    "SPIN": {"max_new_tokens": 10, "spin_lambda": 1.0},
    "ScheduledSampling": {"beta": 0.3},
    "DaDDagger": {"context_length": 16, "rollout_length": 10, "sft_epochs": 0, "num_iterations": 2},
}
#: Checkpoints of the first run: inside the first phase, before its rollouts; and inside the second one.
BEFORE, INSIDE = 2, 4
#: Whose runs are resumed inside the second phase, too, where one reads stored rollouts and one stored labels: the loop is the same.
RESUMED_INSIDE = ("BASH", "DaDDagger")


@dataclass
class Outcome:
    """
    Args:
        losses (`list[float]`): Those of every step.
        rollouts (`list[list[int]]`): Tokens of every branch that was rolled out.
        weights (`torch.Tensor`): At the end, flat.
    """

    losses: list[float]
    rollouts: list[list[int]]
    weights: torch.Tensor


def run(folder: Path, method: str, resume: int | None = None) -> Outcome:
    """One run of six steps or more, with mixed precision and gradient checkpointing."""
    args = config(
        getattr(trl_exbias, f"{method}Config"),
        folder,
        use_cpu=not ON_CUDA,
        bf16=True,
        gradient_checkpointing=True,
        save_strategy="steps",
        save_steps=2,
        **METHODS[method],
    )
    is_dagger = method == "DaDDagger"
    made = trainer(
        getattr(trl_exbias, f"{method}Trainer"),
        args,
        Dataset.from_list(STORIES) if is_dagger else conversations(12),
        **({"teacher_model": tiny_model(seed=7)} if is_dagger else {}),
    )
    made.train(resume_from_checkpoint=resume and str(folder / f"checkpoint-{resume}"))
    # What a resumed run has set aside is not its own.
    phases = sorted(path for path in folder.glob("rollouts/iteration-*") if "superseded" not in path.name)
    rows = [row for path in phases for row in sorted(RolloutStore(path).read(), key=lambda row: row["example_id"])]
    assert bool(rows) == (method != "ScheduledSampling")
    return Outcome(logged(made, "loss"), [row["input_ids"] for row in rows], weights(made).cpu())


def in_common(one: Outcome, other: Outcome) -> dict[str, object]:
    """What two runs share to the bit, and how far apart they are."""
    assert len(one.losses) == len(other.losses) >= 6
    return {
        "losses equal to the bit": one.losses == other.losses,
        "rollouts equal": one.rollouts == other.rollouts,
        "weights equal to the bit": torch.equal(one.weights, other.weights),
        "largest relative difference of a loss": max(
            abs(a - b) / abs(b) for a, b in zip(one.losses, other.losses, strict=True)
        ),
        "relative distance of the weights": distance(one.weights, other.weights),
    }


def assert_close(found: dict[str, object]) -> None:
    """
    The same run except for rounding, and on a CPU the same to the bit.

    Where a rounding has tipped a draw, later tokens of that row are others, and so is its share of the loss of four rows.
    """
    if not ON_CUDA:
        assert found["losses equal to the bit"] and found["rollouts equal"] and found["weights equal to the bit"]
    assert found["largest relative difference of a loss"] < (0.02 if found["rollouts equal"] else 0.3)
    # Adam moves a weight by the learning rate at most, 1e-3 a step; weights are about 0.1 and larger.
    assert found["relative distance of the weights"] < 0.02


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.quick_on_cpu] * (name == "BASH")) for name in METHODS]
)
def test_runs_of_one_seed_and_resumed_ones_are_the_same_run_but_for_rounding(tmp_path, method, record):
    first = run(tmp_path / "first", method)
    assert all(0 < loss < 20 for loss in first.losses)
    found = {}
    if method == "BASH":
        found["again"] = in_common(run(tmp_path / "again", method), first)
    if method in RESUMED_INSIDE:
        found["resumed inside the phase"] = in_common(run(tmp_path / "first", method, resume=INSIDE), first)
    found["resumed before the rollouts"] = in_common(run(tmp_path / "first", method, resume=BEFORE), first)
    # Written down first: what differs is the finding.
    record(**found)
    for comparison in found.values():
        assert_close(comparison)


@pytest.mark.parametrize("method", ["BASH", "DaDDagger"])
def test_with_deterministic_algorithms_they_are_the_same_run(tmp_path, method, record):
    """`torch.use_deterministic_algorithms`, as `full_determinism: true` sets it; what has no such form warns, and is measured."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first, again = run(tmp_path / "first", method), run(tmp_path / "again", method)
    finally:
        torch.use_deterministic_algorithms(before)
    found = in_common(again, first)
    record(**found)
    assert_close(found)
