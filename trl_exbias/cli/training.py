"""What the training commands share: launching, as `trl sft` does, and the script that is launched."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from ..core.calm import calm_imports
from ..core.errors import ExbiasError, did_you_mean
from ..core.files import closed_pipe_is_no_error
from ..core.leaving import leave
from ..core.local_names import check_local
from ..settings.methods import Method, method_named
from ..settings.recipe import RecipeError, check_keys, exit_with, parse
from ..settings.recipes import accelerate_configs
from .screen import RunLog


def launch(name: str, argv: list[str]) -> int:
    """`exbias <method> …`: checks the keys, then hands over to `accelerate launch -m trl_exbias.cli.<method> …`."""
    try:
        method = method_named(name)
        launch_args = check_keys(name, argv)
        accelerate_args = resolve_accelerate_config(launch_args)
    except ExbiasError as error:
        return exit_with(error)
    if "--help" in argv or "-h" in argv:
        return script(name, ["--help"])
    from ..core.upstream import launch_parser
    from .launcher import run_launcher

    script_args = _without(argv, launch_args)
    arguments = launch_parser().parse_args([*accelerate_args, "-m", *_script(method), *script_args])
    _use_all_cores(arguments.num_processes or 1)
    return run_launcher(arguments)


def _script(method: Method) -> list[str]:
    """The module that trains with a method, and what it is told in addition to a recipe's keys."""
    command, *rest = method.command
    return [f"trl_exbias.cli.{command.replace('-', '_')}", *rest]


def _use_all_cores(num_processes: int) -> None:
    """On a machine without an accelerator, `accelerate launch` would give each process one thread unless told otherwise."""
    import torch

    if not torch.accelerator.is_available():
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // num_processes)))


def script(name: str, argv: list[str]) -> int:
    """The training script itself, in a process that `accelerate launch` (or a user) started."""
    try:
        if "--help" in argv or "-h" in argv:
            from ..settings.help import training_help

            print(training_help(name))
            return 0
        check_keys(name, argv)
        method = method_named(name)
        config_class = method.config_class()
        from trl import DatasetMixtureConfig, ModelConfig

        from ..settings.data_arguments import DataArguments

        arguments = parse((DataArguments, config_class, ModelConfig, DatasetMixtureConfig), argv)
        log = RunLog()
        log.start()
        try:
            _train(method, log, *arguments)
        except (ExbiasError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            log.spill()
            raise
    except ExbiasError as error:
        return exit_with(error)
    return 0


def _train(method: Method, log: RunLog, data_args: Any, args: Any, model_args: Any, mixture: Any) -> None:
    from trl import get_peft_config, get_quantization_config

    from ..run.run_directory import check_output_dir
    from ..settings.datasets import load_split
    from .memory import keep_freed_memory

    keep_freed_memory()
    if model_args.model_name_or_path is None:
        raise RecipeError("recipe", ["`model_name_or_path` is missing: a model id of the hub, or a folder."])
    check_local("model_name_or_path", model_args.model_name_or_path)
    # Said again in `train()`; here, before the model and the data are loaded. An old run is removed there, by one process, when
    # nothing is left that could go wrong.
    check_output_dir(args.output_dir, bool(args.resume_from_checkpoint), args.overwrite_output_dir)
    args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(args.model_init_kwargs or {}),
    }
    wants_eval = args.eval_strategy != "no"
    trainer_class = method.trainer_class()
    trainer = trainer_class(
        model=model_args.model_name_or_path,
        args=args,
        train_dataset=load_split(data_args, mixture, "train", trainer_class.reads_documents),
        eval_dataset=load_split(data_args, mixture, "test", trainer_class.reads_documents) if wants_eval else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.add_callback(_open_log(log))
    trainer.train(resume_from_checkpoint=_resume_from(args.resume_from_checkpoint))
    trainer.save_model(args.output_dir)
    trainer.accelerator.print(f"Model saved to {args.output_dir}")
    trainer.accelerator.print(log.summary())
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=data_args.dataset_name)


def _open_log(log: RunLog) -> Any:
    """Opens the log when training begins: an old run is removed by then, and nothing is written for a run that is refused."""
    from transformers import TrainerCallback

    from ..run.run_directory import LOG_FILE

    class OpenLog(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            name = LOG_FILE if args.process_index == 0 else LOG_FILE.replace(".", f"-{args.process_index}.")
            log.open(Path(args.output_dir, name))

    return OpenLog()


def _resume_from(value: str | None) -> str | bool | None:
    """`true` on a command line or in a recipe means the newest checkpoint, as in Python."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return value


def _without(argv: list[str], taken: list[str]) -> list[str]:
    """`argv` without the ordered subsequence `taken`."""
    rest, waiting = [], list(taken)
    for argument in argv:
        if waiting and argument == waiting[0]:
            waiting.pop(0)
        else:
            rest.append(argument)
    return rest


def resolve_accelerate_config(launch_args: list[str]) -> list[str]:
    """
    `--accelerate_config NAME` stands for `--config_file`: a file of `recipes/accelerate`, one that TRL ships, or a path.

    Raises:
        RecipeError: if it is none of them; the message lists the names.
    """
    launch_args = [part for argument in launch_args for part in _split_flag(argument, "--accelerate_config")]
    if "--accelerate_config" not in launch_args:
        return launch_args
    place = launch_args.index("--accelerate_config")
    name, *rest = launch_args[place + 1 :] or [""]
    files = accelerate_configs()
    path = files.get(name, Path(name))
    if not path.is_file():
        problem = f"`{name}` is neither a file nor one of {', '.join(files)}." if name else "needs a name or a file."
        raise RecipeError("--accelerate_config", [problem + did_you_mean(name, files)])
    return ["--config_file", str(path), *launch_args[:place], *rest]


def _split_flag(argument: str, flag: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith(f"{flag}=") else [argument]


def main(method: str, argv: list[str] | None = None) -> None:
    """Entry of `python -m trl_exbias.cli.<method>`."""
    calm_imports()
    status = 130
    with contextlib.suppress(KeyboardInterrupt), closed_pipe_is_no_error():
        status = script(method, sys.argv[1:] if argv is None else argv)
    leave(status)
