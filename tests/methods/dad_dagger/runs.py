"""Short runs of DaD-DAgger on tiny models, and the trajectories that they train on."""

from datasets import Dataset

from trl_exbias import DaDDaggerConfig, DaDDaggerTrainer

from ...loop.runs import config, trainer
from ...reference import dad_dagger as reference
from ...tiny import byte_tokenizer, tiny_model


H, T, LR = 8, 4, 1e-2
TEXTS = ["The fox went out on a chilly night.", "He prayed to the moon.", "tiny"]


def documents(texts=TEXTS) -> Dataset:
    """Plain text, a row for each document."""
    return Dataset.from_list([{"text": text} for text in texts])


def make(tmp_path, dataset=None, model=None, teacher=None, eval_dataset=None, callbacks=None, **options):
    """A trainer, with a tiny teacher where its settings need one and name none."""
    options = {
        "context_length": H,
        "rollout_length": T,
        "num_train_epochs": 2,
        "num_iterations": 2,
        "per_device_train_batch_size": 64,
        "learning_rate": LR,
        **options,
    }
    peft_config = options.pop("peft_config", None)
    args = config(DaDDaggerConfig, tmp_path, **options)
    own = args.teacher_model_name_or_path or args.teacher_server_base_url or args.teachers
    if teacher is None and args.alpha < 1 and own is None:
        teacher = tiny_model(seed=7)
    return trainer(
        DaDDaggerTrainer,
        args,
        documents() if dataset is None else dataset,
        model,
        teacher_model=teacher,
        eval_dataset=eval_dataset,
        callbacks=callbacks,
        peft_config=peft_config,
    )


def run(tmp_path, **options):
    """A finished run; see `make`."""
    resume = options.pop("resume", None)
    made = make(tmp_path, **options)
    made.train(resume_from_checkpoint=resume)
    return made


def cut():
    """The trajectories of `TEXTS`, as the reference cuts them."""
    tokenizer = byte_tokenizer()
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in TEXTS]
    return reference.trajectories(ids, H, T, T)
