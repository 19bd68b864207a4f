"""Configuration of the iterative trainers."""

import logging
import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments
from trl import SFTConfig

from ..chat.conversations import TEMPLATE_KWARGS, template_kwargs_of
from ..core.errors import UsageError, UsageTypeError
from ..rollouts.stop_strings import stop_strings_problem
from ..rollouts.vllm.verbs import MIX_STRATEGIES
from .sft_settings import problems_with_branches


logger = logging.getLogger(__name__)

ENGINES = ("transformers", "vllm")
TURNS = ("last", "all")
#: Trackers that show a table of rollouts; TensorBoard shows it as text.
TRACKERS = ("trackio", "wandb", "tensorboard")
# Settings of rollouts that runs have been made without.
_LATER_ROLLOUT_SETTINGS = ("min_p", "repetition_penalty", "stop_strings")


@dataclass
class IterativeSFTConfig(SFTConfig):
    """
    Configuration of the [`IterativeSFTTrainer`]: every argument of [`~trl.SFTConfig`], and the loop's own.

    > [!NOTE]
    > `num_train_epochs` counts the epochs of **each iteration** and defaults to `1`. `bf16` defaults to `False` on a
    > machine without an accelerator.

    Raises:
        ValueError: before anything is loaded, with every invalid value and invalid combination at once.
    """

    # The method's own settings that tell rollouts apart; an interrupted run may only be resumed with the same ones.
    _rollout_settings: ClassVar[tuple[str, ...]] = (
        "temperature",
        "top_p",
        "top_k",
        "num_rollouts",
        "rollout_turns",
        "max_length",
    )

    num_train_epochs: float = field(
        default=1.0, metadata={"help": "Epochs of joint training on gold and rollouts in each iteration."}
    )
    num_iterations: int = field(
        default=1, metadata={"help": "Iterations: roll out with the current policy, then train on gold and rollouts."}
    )
    sft_epochs: float = field(
        default=1.0,
        metadata={
            "help": "Epochs of plain SFT before the first rollout. 0 if the model was already fine-tuned on these rows."
        },
    )
    epochs_per_iteration: list[float] | None = field(
        default=None,
        metadata={
            "help": "Epochs of each iteration, if they differ: one number for each. Default: `num_train_epochs`."
        },
    )
    num_rollouts: int | None = field(
        default=None,
        metadata={
            "help": "Rows rolled out in each iteration, drawn again each time. The others train on gold. Default: all."
        },
    )
    rollout_engine: str = field(
        default="transformers",
        metadata={
            "help": "What rolls out: 'transformers' (the training model, in place) or 'vllm' (a process of its own, for the "
            "length of each rollout phase).",
            "choices": list(ENGINES),
        },
    )
    vllm_server_base_url: str | None = field(
        default=None,
        metadata={
            "help": "A running `vllm serve --tokens-only` to roll out with, e.g. http://127.0.0.1:8000, instead of a process "
            "of the run's own; its key, if it has one, comes from the environment variable VLLM_API_KEY."
        },
    )
    vllm_gpu_memory_utilization: float | None = field(
        default=None,
        metadata={"help": "Share of a GPU's memory that vLLM may take. Default: most of what training leaves free."},
    )
    vllm_tensor_parallel_size: int = field(
        default=1, metadata={"help": "GPUs, and training processes, that share one vLLM engine."}
    )
    vllm_mix_strategy: str | None = field(
        default=None,
        metadata={
            "help": "How vLLM mixes: 'forced' (a step for each token) or 'continue' (a step for each drawn token). Default: "
            "'continue' on a CPU, 'forced' elsewhere.",
            "choices": list(MIX_STRATEGIES),
        },
    )
    vllm_timeout: float = field(
        default=900.0,
        metadata={"help": "vLLM's process is started again after this many seconds without a sign of life."},
    )
    vllm_init_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Further arguments of `vllm.LLM`: max_num_seqs, quantization, …"}
    )
    rollout_batch_tokens: int = field(
        default=16384,
        metadata={"help": "Tokens of one rollout batch, padding included. Halved automatically if memory runs out."},
    )
    rollout_turns: str = field(
        default="last",
        metadata={
            "help": "Which assistant turns of a conversation are responses: the 'last' one, or 'all', each as a row of "
            "its own (trained on that turn alone).",
            "choices": list(TURNS),
        },
    )
    chat_template_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Arguments of the chat template for all rows, e.g. '{\"enable_thinking\": false}'. A row's own, in a column "
            "of this name, win."
        },
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature of the rollouts; 0 is greedy."})
    top_p: float = field(
        default=1.0,
        metadata={
            "help": "Probability mass that rollouts are drawn from (nucleus sampling). 1 is the whole distribution."
        },
    )
    top_k: int = field(
        default=0, metadata={"help": "Rollouts are drawn from this many most probable tokens. 0 is all."}
    )
    min_p: float = field(
        default=0.0,
        metadata={
            "help": "Rollouts are drawn from tokens at least this many times as probable as the most probable one; 0 is all."
        },
    )
    repetition_penalty: float = field(
        default=1.0,
        metadata={
            "help": "When rollouts are drawn, positive logits of tokens that are in the prompt or the response so far are divided by "
            "this, negative ones multiplied. 1 is off; above 1, tokens are repeated less."
        },
    )
    stop_strings: list[str] | None = field(
        default=None,
        metadata={
            "help": "Strings that end a rollout, after the token that completes one, as an end-of-turn token does. Default: "
            "end-of-turn tokens alone."
        },
    )
    sft_weight: float = field(default=1.0, metadata={"help": "Weight of the gold response's loss in joint training."})
    rollout_weight: float = field(default=1.0, metadata={"help": "Weight of the rollouts' loss in joint training."})
    max_degenerate_rate: float = field(
        default=0.95,
        metadata={
            "help": "Share of a phase's sampled responses that may be empty, end in the middle of a turn, be cut off at "
            "`max_new_tokens`, or be one token over and over, before the run stops; from 0.3 on it warns. 1 never stops."
        },
    )
    restart_lr_schedule: bool = field(
        default=False,
        metadata={
            "help": "Restart the learning-rate schedule, warm-up included, in each phase. Default: one schedule over all phases."
        },
    )
    iteration_patience: int | None = field(
        default=None,
        metadata={
            "help": "After this many evaluations in a row without a better `metric_for_best_model` (default: loss), an "
            "iteration ends early, and its best weights roll out. Default: off."
        },
    )
    num_rollouts_to_print: int = field(
        default=3, metadata={"help": "Sample rollouts printed after each rollout phase (needs `rich`). 0 for none."}
    )
    log_completions: bool = field(
        default=False,
        metadata={
            "help": "Log the first 100 rollouts of each phase as a table `completions` to the trackers of `report_to` that show one: "
            "trackio, wandb, tensorboard."
        },
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Remove the run that `output_dir` holds instead of refusing to start."}
    )

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "vllm_init_kwargs", "chat_template_kwargs"]

    def __post_init__(self) -> None:
        # First of all: TRL's own checks come with a hardware check that would hide these mistakes.
        problems = self.problems()
        if problems:
            lines = "\n".join(f"- {problem}" for problem in problems)
            raise UsageError(f"{type(self).__name__}: {len(problems)} problem{'s'[: len(problems) > 1]}\n{lines}")
        if self.bf16 is None and not self.fp16 and not torch.accelerator.is_available():  # type: ignore[has-type]  # TRL's field
            self.bf16 = False
        super().__post_init__()

    def problems(self) -> list[str]:
        """Every invalid value and combination, as one line each: what was given, what is allowed, what to do."""
        found = self._range_problems()
        epochs = self.epochs_per_iteration
        if epochs is not None and (len(epochs) != self.num_iterations or not all(_number(e) > 0 for e in epochs)):
            found.append(
                f"`epochs_per_iteration` must be one positive number for each of the {self.num_iterations} iterations, "
                f"got {epochs!r}."
            )
        if self.stop_strings is not None and (problem := stop_strings_problem(self.stop_strings)) is not None:
            found.append(problem)
        try:
            template_kwargs_of({TEMPLATE_KWARGS: self.chat_template_kwargs})
        except ValueError as error:
            found.append(str(error))
        if not self.is_plain_sft:
            found += problems_with_branches(self)
        if _number(self.num_iterations) == 0 and _number(self.sft_epochs) == 0 and self.max_steps <= 0:
            found.append("`num_iterations=0` and `sft_epochs=0` leave nothing to train.")
        return found

    def _range_problems(self) -> list[str]:
        """Values outside their range."""
        return [
            f"`{name}` must be {allowed}, got {getattr(self, name)!r}."
            for name, is_valid, allowed in (
                ("num_iterations", _number(self.num_iterations) >= 0, "0 or more"),
                ("sft_epochs", _number(self.sft_epochs) >= 0, "0 or more"),
                (
                    "num_rollouts",
                    self.num_rollouts is None or _number(self.num_rollouts) >= 1,
                    "at least 1, or None for all rows",
                ),
                ("rollout_engine", self.rollout_engine in ENGINES, f"one of {', '.join(ENGINES)}"),
                (
                    "vllm_gpu_memory_utilization",
                    self.vllm_gpu_memory_utilization is None or 0 < _number(self.vllm_gpu_memory_utilization) <= 1,
                    "in (0, 1], or None for what training leaves free",
                ),
                ("vllm_tensor_parallel_size", _number(self.vllm_tensor_parallel_size) >= 1, "at least 1"),
                (
                    "vllm_mix_strategy",
                    self.vllm_mix_strategy in (None, *MIX_STRATEGIES),
                    f"one of {', '.join(MIX_STRATEGIES)}, or None",
                ),
                (
                    "vllm_server_base_url",
                    re.match("https?://[^/]", str(self.vllm_server_base_url or "http://_")) is not None,
                    "an address such as http://127.0.0.1:8000",
                ),
                ("vllm_timeout", _number(self.vllm_timeout) > 0, "above 0"),
                ("rollout_batch_tokens", _number(self.rollout_batch_tokens) >= 1, "at least 1"),
                ("rollout_turns", self.rollout_turns in TURNS, f"one of {', '.join(TURNS)}"),
                ("temperature", _number(self.temperature) >= 0, "0 (greedy) or more"),
                ("top_p", 0 < _number(self.top_p) <= 1, "in (0, 1]"),
                ("top_k", _number(self.top_k) >= 0, "0 (off) or more"),
                ("min_p", 0 <= _number(self.min_p) <= 1, "in [0, 1]; 0 is off"),
                ("repetition_penalty", 0 < _number(self.repetition_penalty) < math.inf, "above 0; 1 is off"),
                ("max_degenerate_rate", 0 <= _number(self.max_degenerate_rate) <= 1, "in [0, 1]"),
                ("sft_weight", _number(self.sft_weight) >= 0, "0 or more"),
                ("rollout_weight", _number(self.rollout_weight) >= 0, "0 or more"),
                (
                    "iteration_patience",
                    self.iteration_patience is None or _number(self.iteration_patience) >= 1,
                    "at least 1, or None to never end an iteration early",
                ),
                ("num_rollouts_to_print", _number(self.num_rollouts_to_print) >= 0, "0 or more"),
            )
            if not is_valid
        ] + self._tracker_problems()

    def _tracker_problems(self) -> list[str]:
        asked = [self.report_to] if isinstance(self.report_to, str) else self.report_to or []
        if not self.log_completions or {*TRACKERS, "all"} & {*asked}:
            return []
        return [
            f"`log_completions` needs one of {', '.join(TRACKERS)} in `report_to`, got {self.report_to!r}: name one, or leave it off."
        ]

    @property
    def is_plain_sft(self) -> bool:
        """Whether nothing rolls out and the data are TRL's own: the run is SFT, and whatever [`~trl.SFTTrainer`] takes is taken."""
        return self.num_iterations == 0 and self.rollout_turns == "last"

    def rollout_settings(self) -> dict[str, Any]:
        """The settings that the rollouts of a run depend on."""
        found = {name: getattr(self, name) for name in self._rollout_settings}
        # Where one is off it is not named: rollouts that were made before there was one are still a run's own.
        later = {name: getattr(self, name) for name in _LATER_ROLLOUT_SETTINGS}
        return found | {name: value for name, value in later.items() if value != getattr(IterativeSFTConfig, name)}

    @classmethod
    def from_args(cls, args: TrainingArguments | None, model: Any, trainer: type[Any]) -> "IterativeSFTConfig":
        """
        `args` as this class, for a trainer class: TRL's own [`~trl.SFTConfig`] is accepted, with this class's own settings at their defaults.

        Raises:
            TypeError: for another method's configuration.
        """
        if args is None:
            name = model if isinstance(model, str) else model.config.name_or_path
            return cls(f"{Path(name).name}-{trainer._name.replace(' ', '-')}")
        if isinstance(args, cls):
            return args
        if isinstance(args, IterativeSFTConfig):
            raise UsageTypeError(f"{trainer.__name__} takes a {cls.__name__}, got a {type(args).__name__}.")
        own = {f.name for f in fields(cls) if f.init}
        config = cls(**{f.name: getattr(args, f.name) for f in fields(args) if f.init and f.name in own})
        for name, value in vars(args).items():  # what a subclass of TRL's has besides
            if not (name.startswith("_") or name in vars(config) or hasattr(cls, name)):
                setattr(config, name, value)
        logger.warning(
            f"`num_train_epochs={args.num_train_epochs:g}` of the {type(args).__name__} counts for each iteration: this run is "
            f"{config.sft_epochs:g} epochs of SFT and {config.num_iterations} iteration(s) of {config.num_train_epochs:g} epochs. "
            f"A {cls.__name__} sets `sft_epochs` and `num_iterations`."
        )
        return config


def _number(value: Any) -> float:
    """`value` if it is a number, else NaN, which fails every comparison."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")
