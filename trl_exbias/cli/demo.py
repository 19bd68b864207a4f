"""`exbias demo`: SmolLM2-135M-Instruct goes through RAC and BASH, and teaches 10 of its own layers by DaD-DAgger, on a CPU."""

import gc
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..core.errors import MissingPackageError
from ..settings.parser import Parser
from .screen import RunLog


_ROWS, _HELD_OUT, _SEED = 48, 24, 0
_QUICK_ROWS, _QUICK_HELD_OUT = 12, 6
_NEXT = """
What to do next
  {inspect:<44} what the policy made of its prompts
  exbias recipes list                          settings for larger models and real data
  exbias check RECIPE.yaml                     steps, memory and disk of a run, before it is started
  exbias bash --config RECIPE.yaml             train{full}"""
_FULL = """
  exbias demo                                  RAC and DaD-DAgger too, in less than 10 minutes"""


def run(argv: list[str]) -> int:
    """The command."""
    parser = Parser(prog="exbias demo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="BASH alone, on a few rows, in less than 2 minutes")
    parser.add_argument("--output_dir", default="runs/demo", help="where the runs go (default: runs/demo)")
    parser.add_argument("--rows", type=int, help=f"training rows (default: {_ROWS}; {_QUICK_ROWS} with --quick)")
    parser.add_argument("--held_out", type=int, help=f"held-out rows (default: {_HELD_OUT}; {_QUICK_HELD_OUT})")
    args = parser.parse_args(argv)
    rows, held_out = (_QUICK_ROWS, _QUICK_HELD_OUT) if args.quick else (_ROWS, _HELD_OUT)
    log = RunLog()
    try:
        _demo(Path(args.output_dir), args.rows or rows, args.held_out or held_out, args.quick, log)
    except Exception:
        log.spill()
        raise
    return 0


def _demo(output_dir: Path, num_rows: int, num_held_out: int, quick: bool, log: RunLog) -> None:
    started = time.perf_counter()
    _check_packages(("gguf",) if quick else ("gguf", "matplotlib"))
    print("Loading …", flush=True)
    from ..run.run_directory import LOG_FILE

    log.start()
    log.open(output_dir / LOG_FILE)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..demo import dad_dagger
    from ..demo.embedded_model import embedded_model
    from ..demo.measure import measure
    from ..demo.report import print_exposure_bias, print_table
    from ..demo.word_problems import word_problems
    from .memory import keep_freed_memory

    keep_freed_memory()
    model_dir = embedded_model()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    train, held_out = word_problems(num_rows, _SEED), word_problems(num_held_out, _SEED + 1)
    print(f"{model_dir.name}, {num_rows} word problems to train on and {num_held_out} held out\n")
    print("Measuring the model on the held-out problems", flush=True)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    results = {"before": measure(model, tokenizer, held_out)}
    for name in ("BASH",) if quick else ("RAC", "BASH"):
        del model
        gc.collect()
        model = _train(name, model_dir, output_dir / name.lower(), train, tokenizer)
        print(f"{name}: measuring", flush=True)
        results[name] = measure(model, tokenizer, held_out)
    del model
    gc.collect()
    if not quick:
        reports, plot = dad_dagger.run(model_dir, tokenizer, output_dir / "dad-dagger", num_rows // 2, _SEED)
    print_table(results, num_held_out)
    if not quick:
        print_exposure_bias(reports, plot)
    print(_NEXT.format(inspect=f"exbias rollouts inspect {output_dir}/bash", full=_FULL if quick else ""))
    print(f"\nRuns (model, rollouts, metrics.jsonl, run.json): {output_dir.resolve()}\n{log.summary()}")
    seconds = time.perf_counter() - started
    print(f"Took {seconds:.0f} seconds." if seconds < 180 else f"Took {seconds / 60:.1f} minutes.")


def _train(name: str, model_dir: Path, output_dir: Path, train: Any, tokenizer: Any) -> Any:
    """One epoch of SFT, a rollout phase and an epoch of joint training; the model afterwards."""
    from ..demo.phase_bars import show_phases
    from ..demo.settings import RUN_SETTINGS
    from ..settings.methods import method_named

    method = method_named(name.lower())
    config = method.config_class()(
        str(output_dir),
        **({"max_new_tokens": 64} if name == "RAC" else {"beta": 0.2}),
        learning_rate=1e-4,
        lr_scheduler_type="cosine",
        per_device_train_batch_size=4,
        max_length=256,
        **RUN_SETTINGS,
        seed=_SEED,
    )
    trainer = method.trainer_class()(model=str(model_dir), args=config, train_dataset=train, processing_class=tokenizer)
    show_phases(trainer, name)
    trainer.train()
    trainer.save_model()
    return trainer.model


def _check_packages(names: tuple[str, ...]) -> None:
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"The demo needs {' and '.join(missing)}: `pip install trl-exbias[demo]`.")
