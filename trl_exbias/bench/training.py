"""Training an arm of the bench for a number of tokens, through the package's own trainers."""

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, PrinterCallback

from ..comparing.compute import trained_tokens
from ..core.errors import UsageError
from .arms import Arm
from .model import REFERENCE_TEMPLATE


_PROBE_ROWS = 128
# Read by every arm alike.
_SHARED = {
    "learning_rate": 3e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 20,
    "adam_beta2": 0.98,
    "weight_decay": 0.01,
    "per_device_train_batch_size": 64,
    "max_length": 128,
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": 20,
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "overwrite_output_dir": True,
    "num_rollouts_to_print": 0,
    # A tiny model that has learned little is not a reason to stop: the bench is there to say so.
    "max_degenerate_rate": 1.0,
}
_OFFLINE = ("rollout/num_tokens", "teacher/num_tokens")
_ONLINE = "mixing/num_tokens"


def train(
    arm: Arm,
    make_model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    dataset: Dataset,
    response_length: int,
    num_tokens: int,
    seed: int,
    teacher: PreTrainedModel | None = None,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """
    Trains a model so that it consumes `num_tokens`: trained, generated, and read for labels.

    How many epochs that is, is found by running the arm on a few rows first: what an epoch costs, and what comes between.

    Args:
        make_model (`Callable`): Makes the model to start from, again each time. (A deep copy of one that TRL has trained would
            still compute with the original's weights: its fused LM head is a closure over them.)

    Returns:
        The trained model, and what it consumed.
    """

    def run(rows: Dataset, epochs: float) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
        return _run(arm, make_model(), tokenizer, rows, response_length, epochs, seed, teacher)

    probe = dataset.select(range(min(_PROBE_ROWS, len(dataset))))
    _, logs = run(probe, 1)
    scale = len(dataset) / len(probe)
    an_epoch = (trained_tokens(logs) + _logged(logs, (_ONLINE,))) * scale
    between = _logged(logs, _OFFLINE) * scale
    epochs = (num_tokens - between) / an_epoch
    if epochs <= 0:
        raise UsageError(
            f"{num_tokens} tokens are too few for {arm.name}: its rollouts and labels alone take {between:.0f}."
        )
    trained, logs = run(dataset, epochs)
    consumed = {
        "trained": trained_tokens(logs),
        "generated": _logged(logs, (_ONLINE, "rollout/num_tokens")),
        "labels": _logged(logs, ("teacher/num_tokens",)),
        "steps": max(entry["step"] for entry in logs),
        "epochs": epochs,
    }
    told = ("changed_rate", "correction_rate", "acceptance_rate")
    rates = {key: entry[key] for entry in logs for key in entry if key.endswith(told)}
    return trained, {**consumed, **rates}


def _run(
    arm: Arm,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[tuple[str, str]],
    response_length: int,
    epochs: float,
    seed: int,
    teacher: PreTrainedModel | None,
) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """One run: `epochs` of SFT where the arm does not roll out, of each iteration where it does."""
    trainer_class = arm.trainer_class()
    config_class = trainer_class.config_class
    known = config_class.__dataclass_fields__
    own = {
        "max_new_tokens": response_length,
        "rollout_length": response_length,
        "context_length": 1,  # rows bring their contexts: their prompts
        "correction_template": REFERENCE_TEMPLATE,
        "gate_template": REFERENCE_TEMPLATE,
    }
    settings = {**_SHARED, **{key: value for key, value in own.items() if key in known}, **arm.settings}
    rolls_out = settings.get("num_iterations", 1) != 0
    settings |= {"num_train_epochs": epochs, "sft_epochs": 0} if rolls_out else {"sft_epochs": epochs}
    with tempfile.TemporaryDirectory(prefix="exbias-bench-") as folder:
        trainer = trainer_class(
            model=model,
            args=config_class(folder, seed=seed, **settings),
            train_dataset=rows,
            processing_class=tokenizer,
            **({"teacher_model": teacher} if arm.has_teacher else {}),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.model.eval(), trainer.state.log_history


def _logged(logs: list[dict[str, Any]], keys: tuple[str, ...]) -> int:
    return int(sum(entry[key] for entry in logs for key in keys if key in entry))
