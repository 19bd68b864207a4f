"""Short runs of the trainers on tiny models, and what they leave."""

import json
from pathlib import Path

import torch

from trl_exbias import BASHConfig, BASHTrainer

from ..tiny import byte_tokenizer, conversations, tiny_model


DEFAULTS = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "max_length": 128,
}
# Tiny random models never stop.
OWN_DEFAULTS = {"num_rollouts_to_print": 0, "max_degenerate_rate": 1.0}


def config(config_class, output_dir, **options):
    """A config for a quiet run in `output_dir`."""
    return config_class(output_dir=str(output_dir), **{**DEFAULTS, **OWN_DEFAULTS, **options})


def trainer(trainer_class, args, train_dataset, model=None, **options):
    """A trainer on a fresh tiny model."""
    return trainer_class(
        model=model if model is not None else tiny_model(),
        args=args,
        train_dataset=train_dataset,
        processing_class=options.pop("processing_class", None) or byte_tokenizer(),
        **options,
    )


def bash(tmp_path, dataset=None, model=None, callbacks=None, resume=None, eval_dataset=None, **options) -> BASHTrainer:
    """A finished run of BASH, on conversations unless a data set is given."""
    args = config(BASHConfig, tmp_path, **{"beta": 0.5, **options})
    done = trainer(
        BASHTrainer, args, dataset or conversations(12), model, callbacks=callbacks, eval_dataset=eval_dataset
    )
    done.train(resume_from_checkpoint=resume)
    return done


def logged(done, key: str) -> list[float]:
    """Every value that a finished trainer has logged under a key."""
    return [entry[key] for entry in done.state.log_history if key in entry]


def weights(done) -> torch.Tensor:
    """All weights of a finished trainer's model, flat."""
    return torch.cat([parameter.detach().flatten() for parameter in done.model.parameters()])


def metrics_file(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (Path(output_dir) / "metrics.jsonl").read_text().splitlines()]
