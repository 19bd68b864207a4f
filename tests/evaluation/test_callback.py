from datasets import Dataset
from transformers import Trainer, TrainingArguments

from trl_exbias import DaDDaggerConfig, DaDDaggerTrainer
from trl_exbias.evaluation import ExposureBiasCallback, exposure_bias

from ..loop.runs import config, logged, trainer
from ..tiny import byte_tokenizer, tiny_model


DOCUMENTS = [list(b"The dog sleeps under the table all day long.")]


def test_every_iteration_logs_the_gap(tmp_path):
    args = config(DaDDaggerConfig, tmp_path, alpha=1.0, num_iterations=2, context_length=8, rollout_length=4)
    made = trainer(DaDDaggerTrainer, args, Dataset.from_list([{"text": "The fox goes out at night. " * 3}]))
    callback = ExposureBiasCallback(made, DOCUMENTS, context_length=8, horizon=4, num_samples=2, stride=4)
    made.add_callback(callback)
    made.train()
    gaps = logged(made, "exposure_bias/gap")
    assert len(gaps) == 3, "before training and after each iteration"
    assert [step for step, _ in callback.reports] == [0, made.plan.first_step(2), made.plan.total_steps]
    last = exposure_bias(made.model, DOCUMENTS, 8, 4, num_samples=2, stride=4)
    assert gaps[-1] == last.totals["gap"].mean


def test_any_trainer_logs_it_every_epoch(tmp_path):
    rows = Dataset.from_list([{"input_ids": DOCUMENTS[0], "labels": DOCUMENTS[0]}] * 2)
    args = TrainingArguments(str(tmp_path), num_train_epochs=2, use_cpu=True, report_to="none", save_strategy="no")
    plain = Trainer(model=tiny_model(), args=args, train_dataset=rows, processing_class=byte_tokenizer())
    plain.add_callback(ExposureBiasCallback(plain, DOCUMENTS, context_length=8, horizon=4, num_samples=1, stride=8))
    plain.train()
    assert len(logged(plain, "exposure_bias/free_running")) == 3
