"""The card of a trained model: what method, from what, on what, how, and what it did to exposure bias.

TRL's `create_model_card` cannot be given a template of another package (trl 1.16); so TRL writes its card, and what it
knows (base model, tags, links of the trackers) is taken over into ours, which takes its place.
"""

import json
import re
from dataclasses import MISSING, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import ModelCardData

from ..core.modeling import base_causal_lm
from ..core.upstream import commit_hash, has_length
from ..run.run_directory import redact, versions
from .markdown import fence, hub_link, plain, table


CARD = "README.md"
#: Settings that say where and how loudly a run was made, not what it was.
_OF_THE_MACHINE = re.compile(
    r"output_dir|logging_dir|run_name|disable_tqdm|report_to|accelerator_config|hub_.*|push_to_hub.*|vllm_server_.*"
    r"|.*_cpu|overwrite_output_dir|resume_from_checkpoint|log.*|save_.*|dataloader_pin_memory|pad_to_multiple_of"
    r"|num_rollouts_to_print"
)
_GAP_COLUMNS = {
    "kl_own": "KL from the teacher, own states",
    "kl_gold": "KL, true states",
    "teacher_forced": "teacher-forced",
    "free_running": "free-running",
    "gap": "gap",
    "excess_error": "excess error",
    "accumulated_excess_error": "accumulated (%)",
}


def create_model_card(
    trainer: Any, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
) -> ModelCard:
    """
    The card of a trainer's model; call it where TRL's own card has just been written into `output_dir`.

    Args:
        trainer ([`IterativeSFTTrainer`]): After or during training; before, the card lacks what is only known then.
        model_name, dataset_name, tags: As in [`~trl.SFTTrainer.create_model_card`].

    Returns:
        [`~huggingface_hub.ModelCard`]: Saved as `README.md` of `output_dir`. It holds no secret and no path.
    """
    path = Path(trainer.args.output_dir) / CARD
    of_trl = ModelCard.load(path)
    known = of_trl.data.to_dict()
    adapter = hasattr(trainer.model, "peft_config")
    own_tags = sorted({*known.get("tags", []), *([tags] if isinstance(tags, str) else tags or [])})
    data = ModelCardData(**{**known, "tags": own_tags})
    data.model_name = model_name = model_name or _name(trainer)
    if data.base_model:
        data.base_model_relation = "adapter" if adapter else "finetune"
    # TRL's placeholder, in British spelling: no key of the hub's, and no licence.
    data.__dict__.pop("licence", None)
    model_id = trainer.hub_model_id or model_name
    shown = yaml.safe_dump(recipe(trainer.args), sort_keys=False, allow_unicode=True).strip()
    card = ModelCard.from_template(
        data,
        template_str=_template("model_card.md.jinja"),
        title=plain(model_name),
        base_model=hub_link(data.base_model) if data.base_model else None,
        adapter=adapter,
        dataset=hub_link(dataset_name, "datasets/") if dataset_name else None,
        method=plain(trainer._name),
        paper_title=plain(trainer._paper["title"]) if trainer._paper.get("title") else None,
        citation=trainer._paper.get("citation"),
        links="\n".join(line.strip() for line in of_trl.text.splitlines() if line.strip().startswith("[<img")),
        # A Python string, without a character that could end the block of code or begin a tag.
        model_id=json.dumps(model_id).replace("`", r"\u0060").replace("<", r"\u003c"),
        chat=bool(getattr(trainer.processing_class, "chat_template", None)),
        facts=_facts(trainer, dataset_name),
        recipe=shown if shown != "{}" else None,
        fence=fence(shown),
        config_class=f"`{type(trainer.args).__name__}`",
        gap_table=gap_table(trainer.state.log_history),
        versions=versions(),
    )
    card.save(path)
    return card


def save_model_card(trainer: Any, folder: str | Path) -> None:
    """Writes the card of a model that is saved in `folder`."""
    trainer.create_model_card()
    if trainer.is_world_process_zero() and Path(folder).resolve() != Path(trainer.args.output_dir).resolve():
        ModelCard.load(Path(trainer.args.output_dir) / CARD).save(Path(folder) / CARD)


def recipe(args: Any) -> dict[str, Any]:
    """Settings of a configuration that differ from their defaults, without secrets and what is of the machine alone."""
    chosen = {}
    for field in fields(args):
        value = getattr(args, field.name, None)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if value == default or not (value or default) or _OF_THE_MACHINE.fullmatch(field.name):
            continue
        shown = json.loads(json.dumps(redact(value, field.name)))  # plain strings for enumerations of strings
        if shown != "<redacted>":
            chosen[field.name] = _without_paths(shown)
    return chosen


def gap_table(log_history: list[dict[str, Any]]) -> str | None:
    """What [`ExposureBiasCallback`] logged, a row for each measurement; `None` where it logged nothing."""
    prefix = "exposure_bias/"
    measured = [entry for entry in log_history if f"{prefix}gap" in entry]
    columns = [name for name in _GAP_COLUMNS if any(prefix + name in entry for entry in measured)]
    rows = [
        [str(entry["step"]), *(f"{entry[prefix + name]:.4f}" if prefix + name in entry else "–" for name in columns)]
        for entry in measured
    ]
    return table(["step", *(_GAP_COLUMNS[name] for name in columns)], rows) if rows else None


def _facts(trainer: Any, dataset_name: str | None) -> list[tuple[str, str]]:
    config = base_causal_lm(trainer.model).config
    found = [
        ("Base model's revision", commit_hash(config)),
        ("Data", dataset_name),
        ("Data's revision", ", ".join(_revisions(trainer.train_dataset)) or None),
        ("Rows", len(trainer.train_dataset) if has_length(trainer.train_dataset) else None),
        ("Identity of the tokenized rows", getattr(trainer, "data_fingerprint", None)),
        ("Steps", trainer.state.global_step or None),
        ("Seed", trainer.args.seed),
    ]
    return [(name, plain(value)) for name, value in found if value is not None]


def _revisions(dataset: Any) -> list[str]:
    """The commits of the hub's data sets that these rows came from: `datasets` notes them in what it downloaded."""
    checksums = getattr(getattr(dataset, "info", None), "download_checksums", None) or {}
    found = [re.match(r"hf://datasets/([^@]+)@([0-9a-f]{40})/", url) for url in checksums]
    return sorted({f"{match[1]}@{match[2]}" for match in found if match})


def _without_paths(value: Any) -> Any:
    """Shortens absolute paths to their last part: where a file lay on the machine is nobody's business."""
    if isinstance(value, dict):
        return {key: _without_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_paths(part) for part in value]
    return Path(value).name if isinstance(value, str) and "\n" not in value and Path(value).is_absolute() else value


def _name(trainer: Any) -> str:
    return (trainer.hub_model_id or "").split("/")[-1] or Path(trainer.args.output_dir).resolve().name


def _template(name: str) -> str:
    return resources.files("trl_exbias.templates").joinpath(name).read_text(encoding="utf-8")
