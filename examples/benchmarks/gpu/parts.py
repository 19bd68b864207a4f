"""The parts of the GPU benchmark, in order of value: what each measures, how long it may take, and what it needs."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trl_exbias.demo.embedded_model import embedded_model_folder, is_made


ROOT = Path(__file__).parents[3]


def data_folder() -> Path:
    """Where the data sets are: `$TRL_EXBIAS_DATA`, or the folder next to the project's."""
    return Path(os.environ.get("TRL_EXBIAS_DATA", ROOT.parent / "shared" / "data"))


@dataclass(frozen=True)
class Part:
    """
    Args:
        name (`str`): Its name, for the JSON and on the command line.
        about (`str`): What it measures.
        seconds (`int`): After which it is stopped; what it has measured stays.
        missing (`Callable[[], str | None]`): What it needs and has not, in words; `None` where all is there.
    """

    name: str
    about: str
    seconds: int
    missing: Callable[[], str | None] = lambda: None

    @property
    def module(self) -> str:
        return f"examples.benchmarks.gpu.{self.name}"


def _missing_gsm8k() -> str | None:
    return _missing_model() or _missing_file("gsm8k/train.jsonl") or _missing_file("gsm8k/test.jsonl")


def _missing_stories() -> str | None:
    return _missing_model() or _missing_file("story_domains/investigators.jsonl")


def _missing_model() -> str | None:
    folder = embedded_model_folder()
    return None if is_made(folder) else f"SmolLM2 is not in {folder} (python -m trl_exbias.demo.embedded_model)"


def _missing_file(name: str) -> str | None:
    path = data_folder() / name
    return None if path.is_file() else f"{path} is not there"


PARTS = (
    Part("seven_b", "a 7B model with LoRA, random weights: steps, rollouts, memory", 200),
    Part("gsm8k", "SmolLM2 on GSM8K: methods at equal tokens", 230, _missing_gsm8k),
    Part("stories", "DaD-DAgger on the story domains at the paper's size", 110, _missing_stories),
)
