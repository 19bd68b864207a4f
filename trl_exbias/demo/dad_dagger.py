"""The demo's DaD-DAgger section: 10 of SmolLM2's layers learn from all 30, and how far they are from them is measured."""

from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ..evaluation import ExposureBias, ExposureBiasCallback
from ..evaluation.plot import plot_exposure_bias
from ..methods.dad_dagger.students import keep_layers
from .phase_bars import show_phases
from .settings import RUN_SETTINGS
from .word_problems import word_problems


CONTEXT, HORIZON, LAYERS = 32, 8, 10


def run(
    model_dir: Path, tokenizer: PreTrainedTokenizerBase, output_dir: Path, num_rows: int, seed: int
) -> tuple[dict[str, ExposureBias], Path]:
    """Trains and measures before, after the data alone (next-token distillation) and at the end; and plots."""
    from ..methods.dad_dagger.config import DaDDaggerConfig
    from ..methods.dad_dagger.trainer import DaDDaggerTrainer

    train, held_out = _documents(num_rows, seed), _documents(num_rows // 2, seed + 1)
    config = DaDDaggerConfig(
        str(output_dir),
        context_length=CONTEXT,
        rollout_length=HORIZON,
        alpha=0.5,
        num_iterations=3,
        num_train_epochs=2,
        iteration_patience=None,
        learning_rate=2e-4,
        per_device_train_batch_size=16,
        **RUN_SETTINGS,
        seed=seed,
    )
    trainer = DaDDaggerTrainer(
        model=keep_layers(AutoModelForCausalLM.from_pretrained(model_dir), LAYERS),
        teacher_model=str(model_dir),
        args=config,
        train_dataset=train,
        processing_class=tokenizer,
    )
    documents = [tokenizer(text)["input_ids"] for text in held_out["text"]]
    callback = ExposureBiasCallback(
        trainer,
        documents,
        CONTEXT,
        HORIZON,
        num_samples=2,
        stride=HORIZON,
        seed=seed,
        teacher=AutoModelForCausalLM.from_pretrained(model_dir).eval(),
    )
    trainer.add_callback(callback)
    show_phases(trainer, "DaD-DAgger")
    trainer.train()
    trainer.save_model()
    (_, before), (_, data_alone), *_, (_, after) = callback.reports
    reports = {"before": before, "iteration 1, data alone": data_alone, "iteration 3, with rollouts": after}
    plot = output_dir / "exposure-bias.png"
    # Left out of the picture: a student that was never trained is off its scale.
    drawn = {name: report for name, report in reports.items() if name != "before"}
    plot_exposure_bias(drawn, plot, f"{LAYERS}-layer student, DaD-DAgger, held-out word problems")
    return reports, plot


def _documents(count: int, seed: int) -> Dataset:
    """Questions and answers as plain text, one problem a document."""
    rows = word_problems(count, seed)
    texts = [f"{row['prompt'][0]['content']}\n{row['completion'][0]['content']}" for row in rows]
    return Dataset.from_dict({"text": texts})
