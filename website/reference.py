"""Pages that are made from the sources: settings, commands, the Python API. Nothing heavy is imported."""

import contextlib
import io

from trl_exbias.cli.main import COMMANDS, main
from trl_exbias.settings.help import Option, sections
from trl_exbias.settings.methods import methods


#: Units of the settings that have one. A test asks that every number has an entry.
UNITS = {
    "alpha": "weight",
    "beta": "probability",
    "context_length": "tokens",
    "epochs_per_iteration": "epochs",
    "gate_epsilon": "probability",
    "iteration_patience": "evaluations",
    "jsd_beta": "share",
    "kd_temperature": "temperature",
    "learning_rate": "rate",
    "max_degenerate_rate": "share",
    "max_new_tokens": "tokens",
    "min_p": "share of the highest probability",
    "num_iterations": "iterations",
    "num_kept": "answers",
    "num_rollouts": "rows",
    "num_rollouts_to_print": "rows",
    "num_samples": "answers",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "rows",
    "repetition_penalty": "factor",
    "rollout_batch_tokens": "tokens",
    "rollout_length": "tokens",
    "rollout_weight": "weight",
    "self_teacher_decay": "share",
    "sft_epochs": "epochs",
    "sft_weight": "weight",
    "spin_lambda": "1/nat",
    "stride": "tokens",
    "teacher_top_k": "tokens",
    "temperature": "temperature",
    "top_k": "tokens",
    "top_p": "probability",
    "vllm_gpu_memory_utilization": "share",
    "vllm_tensor_parallel_size": "GPUs",
    "vllm_timeout": "s",
}
_SHARED = ("IterativeSFTConfig", "DataArguments")
#: What a user of the library calls or subclasses.
API = {
    "Trainers": (
        "trl_exbias.loop.iterative.IterativeSFTTrainer",
        "trl_exbias.methods.bash.BASHTrainer",
        "trl_exbias.methods.rac.RACTrainer",
        "trl_exbias.methods.dad_dagger.trainer.DaDDaggerTrainer",
        "trl_exbias.methods.spin.SPINTrainer",
        "trl_exbias.methods.scheduled_sampling.ScheduledSamplingTrainer",
    ),
    "Configurations": (
        "trl_exbias.loop.config.IterativeSFTConfig",
        "trl_exbias.methods.configs.BASHConfig",
        "trl_exbias.methods.configs.RACConfig",
        "trl_exbias.methods.dad_dagger.config.DaDDaggerConfig",
        "trl_exbias.methods.configs.SPINConfig",
        "trl_exbias.methods.configs.ScheduledSamplingConfig",
    ),
    "A method of your own": ("trl_exbias.core.data.Example", "trl_exbias.core.branches.Branch"),
    "Rolling out": (
        "trl_exbias.rollouts.sampling.SamplingOptions",
        "trl_exbias.rollouts.stop_strings.StopStrings",
        "trl_exbias.rollouts.engine.RolloutEngine",
        "trl_exbias.rollouts.local.engine.TransformersEngine",
    ),
    "Measuring": (
        "trl_exbias.evaluation.exposure_bias.exposure_bias",
        "trl_exbias.evaluation.exposure_bias.ExposureBias",
        "trl_exbias.evaluation.perplexity.perplexity",
        "trl_exbias.evaluation.callback.ExposureBiasCallback",
    ),
    "Errors": ("trl_exbias.core.errors", "trl_exbias.run.errors"),
}


def own_sections(method: str) -> list[tuple[str, list[Option]]]:
    """The package's own options of a method, without TRL's and transformers'."""
    return [(title, options) for title, options in sections(method) if " of " not in title]


def settings_page() -> str:
    """Every setting of every method, with type, unit, default and what it does."""
    parts = [
        "# Settings",
        "Each setting is a field of a configuration, a key of a recipe and an option of the command line. All settings of "
        "[`SFTConfig`](https://huggingface.co/docs/trl/sft_trainer#trl.SFTConfig) come on top and keep their meaning. This page is "
        "made from the configurations' own help.",
    ]
    seen: set[str] = set()
    for name in methods():
        own = [(title, options) for title, options in own_sections(name) if title not in (*_SHARED, *seen)]
        for title, options in own:
            parts += [
                f"## {title}",
                f"For `exbias {name}`, with everything under [Every method](#every-method).",
                _table(options),
            ]
        seen |= {title for title, _ in own}
        if not own:
            parts += [f"## {name}", f"`exbias {name}` has no settings of its own: {_parents(name)}"]
    shared = dict(own_sections("bash"))
    parts += ["## Every method", _table(shared["IterativeSFTConfig"])]
    parts += ["## Data", "Where the training commands find their rows.", _table(shared["DataArguments"])]
    return "\n\n".join(parts) + "\n"


def _parents(name: str) -> str:
    """Where the settings are of a method that adds none."""
    titles = [title for title, _ in own_sections(name) if title not in _SHARED]
    return f"it takes those of {' and '.join(f'[{title}](#{title.lower()})' for title in titles)}."


def _table(options: list[Option]) -> str:
    rows = [
        f"| `{o.name}` | `{_cell(o.kind)}` | {UNITS.get(o.name, '')} | {f'`{o.default}`' if o.default is not None else ''} "
        f"| {_cell(o.help)} |"
        for o in options
    ]
    return "\n".join(["| setting | type | unit | default | what it does |", "|---|---|---|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("{{", "&#123;{")


def commands_page() -> str:
    """What each command prints for `--help`."""
    parts = [
        "# Commands",
        "What each command prints for `--help`. The options of training commands are on [Settings](settings.md).",
    ]
    parts += ["```text", printed("--help"), "```"]
    parts += [f"The training commands: {', '.join(f'`exbias {name}`' for name in methods())}."]
    for name in COMMANDS:
        parts += [f"## exbias {name}", "```text", printed(name, "--help"), "```"]
    return "\n\n".join(parts).replace("```text\n\n", "```text\n").replace("\n\n```\n", "\n```\n") + "\n"


def printed(*argv: str) -> str:
    """The output of a command."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*argv])
    return out.getvalue().rstrip()


def api_page() -> str:
    """The public classes and functions, for mkdocstrings to fill in."""
    parts = ["# Python API", "The names under *Trainers* and *Configurations* are imported from `trl_exbias`."]
    for title, names in API.items():
        parts += [f"## {title}", *(f"::: {name}" for name in names)]
    return "\n\n".join(parts) + "\n"
