"""Refuses to compare what is not alike, and says what differs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import UsageError
from ..evaluation.figures import Figure
from .comparison_file import PlannedRun


#: Settings that must be the same in every run: what a difference in figures could otherwise come from.
_CONFIG_KEYS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "optim",
    "weight_decay",
    "max_grad_norm",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "fp16",
    "max_length",
    "loss_type",
    "completion_only_loss",
    "assistant_only_loss",
    "data_seed",
)
_MODEL_KEYS = (
    "model_name_or_path",
    "model_revision",
    "dtype",
    "use_peft",
    "load_in_4bit",
    "load_in_8bit",
    "chat_template_path",
)
_DATA_KEYS = (
    "dataset_name",
    "dataset_config",
    "dataset_train_split",
    "datasets",
    "prompt_template",
    "completion_template",
    "text_template",
    "document_column",
    "as_conversation",
)
_BATCH_KEYS = ("per_device_train_batch_size", "gradient_accumulation_steps")
_PACKAGES = ("trl-exbias", "trl", "transformers", "torch")


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same in all runs (or evaluations), and what it is in each."""

    setting: str
    values: dict[str, Any]

    def __str__(self) -> str:
        groups: dict[str, list[str]] = {}
        for name, value in self.values.items():
            groups.setdefault(repr(value), []).append(name)
        return f"`{self.setting}`: " + "; ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())


def settings_of_recipe(run: PlannedRun) -> dict[str, Any]:
    """What a run's recipe says of the settings that must be the same, before it is trained."""
    keys = run.keys
    found = {key: keys.get(key) for key in (*_CONFIG_KEYS, "seed")}
    lora = {key: value for key, value in keys.items() if key.startswith("lora_")}
    found["model"] = _present({**{key: keys.get(key) for key in _MODEL_KEYS}, **lora})
    found["data"] = _present({key: keys.get(key) for key in _DATA_KEYS})
    batch, accumulation = (keys.get(key) for key in _BATCH_KEYS)
    found["batch_size"] = None if batch is None else batch * (accumulation or 1)
    return found


def settings_of_run(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a finished run's `run.json` says of them."""
    config = record["config"]
    found = {key: config[key] for key in _CONFIG_KEYS if key in config}
    found |= {"seed": record["seed"], "data": record["data"], "hardware": _hardware(record)}
    found |= {package: record["versions"][package] for package in _PACKAGES if package in record["versions"]}
    batch, accumulation = (config[key] for key in _BATCH_KEYS)
    found["batch_size"] = batch * accumulation * record["world_size"]
    found["model"] = record["model"]
    return found


def differences(settings: Mapping[str, Mapping[str, Any]]) -> list[Difference]:
    """Settings that are not the same in all of some runs, by the run's name; a run that does not say is left out."""
    found = []
    for key in dict.fromkeys(key for own in settings.values() for key in own):
        values = {name: own[key] for name, own in settings.items() if key in own}
        if len({repr(value) for value in values.values()}) > 1:
            found.append(Difference(key, values))
    return found


def figure_differences(figures: Mapping[str, Mapping[str, Figure]]) -> list[Difference]:
    """Settings of the evaluation that are not the same for all models, by the model's name and the figure's."""
    found = []
    for key in dict.fromkeys(key for own in figures.values() for key in own):
        settings = {name: own[key].settings for name, own in figures.items() if key in own}
        found += [Difference(f"{key}: {d.setting}", d.values) for d in differences(settings)]
    return found


def check_alike(found: Iterable[Difference], allow: Iterable[str], what: str) -> list[Difference]:
    """
    Refuses differences, except for those that are allowed.

    Args:
        allow (`Iterable[str]`): Names of settings; an evaluation's without the figure.
        what (`str`): `"runs"` or `"evaluations"`, for the message.

    Returns:
        `list[Difference]`: Those that are allowed, for the report.

    Raises:
        ValueError: lists every other one and how to allow it.
    """
    allow = set(allow)
    allowed: list[Difference] = []
    refused: list[Difference] = []
    for difference in found:
        names = {difference.setting, difference.setting.rpartition(": ")[2]}
        (allowed if names & allow else refused).append(difference)
    if refused:
        lines = "\n".join(f"  - {difference}" for difference in refused)
        keys = " ".join(dict.fromkeys(f"--allow {d.setting.rpartition(': ')[2]}" for d in refused))
        raise UsageError(
            f"The {what} cannot be compared: they differ in\n{lines}\nTo compare them all the same: {keys}"
        )
    return allowed


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _hardware(record: Mapping[str, Any]) -> str:
    hardware = record["hardware"]
    devices = hardware["accelerators"]
    where = f"{len(devices)} × {devices[0]}" if devices else f"{hardware['machine']}, {hardware['threads']} threads"
    return f"{where}, {record['world_size']} process{'es'[: 2 * (record['world_size'] > 1)]}"
