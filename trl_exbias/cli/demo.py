"""`exbias demo`: SmolLM2-135M-Instruct goes through RAC and BASH, and teaches 10 of its own layers by DaD-DAgger, on a CPU."""

import gc
import time
from pathlib import Path

from ..settings.parser import Parser


_ROWS, _HELD_OUT, _SEED = 48, 24, 0


def run(argv: list[str]) -> int:
    """The command."""
    parser = Parser(prog="exbias demo", description=__doc__)
    parser.add_argument("--output_dir", default="runs/demo", help="where the runs go (default: runs/demo)")
    parser.add_argument("--rows", type=int, default=_ROWS, help=f"training rows (default: {_ROWS})")
    parser.add_argument("--held_out", type=int, default=_HELD_OUT, help=f"held-out rows (default: {_HELD_OUT})")
    args = parser.parse_args(argv)
    _demo(Path(args.output_dir), args.rows, args.held_out)
    return 0


def _demo(output_dir: Path, num_rows: int, num_held_out: int) -> None:
    started = time.perf_counter()
    import transformers

    from trl_exbias import BASHConfig, BASHTrainer, RACConfig, RACTrainer

    from ..demo import dad_dagger
    from ..demo.embedded_model import embedded_model
    from ..demo.measure import measure
    from ..demo.report import print_exposure_bias, print_table
    from ..demo.settings import RUN_SETTINGS
    from ..demo.word_problems import word_problems
    from .memory import keep_freed_memory

    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    model_dir = embedded_model()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    train, held_out = word_problems(num_rows, _SEED), word_problems(num_held_out, _SEED + 1)

    print(f"\nMeasuring {model_dir.name} on {num_held_out} held-out word problems …", flush=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir)
    results = {"before": measure(model, tokenizer, held_out)}
    for config_class, trainer_class, own in (
        (RACConfig, RACTrainer, {"max_new_tokens": 64}),
        (BASHConfig, BASHTrainer, {"beta": 0.2}),
    ):
        del model
        gc.collect()
        name = trainer_class._name
        print(f"\n{name}: 1 epoch of SFT, rollouts, 1 epoch of joint training on {num_rows} rows …", flush=True)
        config = config_class(
            str(output_dir / name.lower()),
            **own,
            learning_rate=1e-4,
            lr_scheduler_type="cosine",
            per_device_train_batch_size=4,
            max_length=256,
            **RUN_SETTINGS,
            seed=_SEED,
        )
        trainer = trainer_class(model=str(model_dir), args=config, train_dataset=train, processing_class=tokenizer)
        trainer.train()
        trainer.save_model()
        model = trainer.model
        results[name] = measure(model, tokenizer, held_out)
    del model, trainer
    gc.collect()
    print(
        f"\nDaD-DAgger: 10 of the model's 30 layers learn from all of them, {num_rows // 2} word problems as text …",
        flush=True,
    )
    reports, plot = dad_dagger.run(model_dir, tokenizer, output_dir / "dad-dagger", num_rows // 2, _SEED)
    print_table(results, num_held_out)
    print_exposure_bias(reports, plot)
    print(f"\nRuns (model, rollouts, metrics.jsonl, run.json): {output_dir.resolve()}")
    print(f"Took {(time.perf_counter() - started) / 60:.1f} minutes.")
