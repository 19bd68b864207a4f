"""DaD-DAgger: Data as Demonstrator with DAgger's teacher."""

import copy
import dataclasses
import logging
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ...core.branches import GOLD, Branch
from ...core.data import Example
from ...core.losses import LossTerm
from ...core.modeling import LMHead
from ...core.trainable import freeze_all_but
from ...loop.multimodal import load_processing_class, text_tokenizer
from ...loop.preparation import Preparation
from ...loop.signature import named
from ...rollouts import RolloutEngine, SamplingOptions
from ..plans import DaDDaggerPlan
from .checks import check_before_loading, check_trainable
from .choosing import find_teacher
from .config import DaDDaggerConfig
from .documents import cut_documents, tokenize_documents
from .precomputing import PrecomputingTrainer
from .responses import cut_responses, report_uncut
from .several_teachers import SeveralTeachers, with_teachers
from .trajectories import DOCUMENT


logger = logging.getLogger(__name__)


class DaDDaggerTrainer(PrecomputingTrainer):
    """
    Distils a student from a teacher on the data's contexts *and on the student's own*, with the data's tokens as hard
    labels on both.

    Text is cut into trajectories of H true tokens and a horizon of T. Iteration 1 trains on the data. Before each later
    one the student free-runs from every true context for T tokens, and the set grows by its rollouts: at a position t of
    one, the context is the student's, the hard label is the **data's** token w_t and the soft label the **teacher's**
    distribution on the student's context. Every iteration minimises, as one mean over the union,

    `α · NLL + (1 − α) · KD`,  `KD = −Σ_v p*(v | context) log p_θ(v | context)`  (Eq. 5–9).

    Differs from [`IterativeSFTTrainer`] in the data (trajectories), in that rollouts accumulate (`aggregate`), and in the
    soft labels.

    Requirements: a teacher with the student's tokenizer (none with `alpha=1`).

    Relations: `alpha=1` is DaD, `alpha=0` ImitKD, `num_iterations=1` next-token knowledge distillation, and both
    `alpha=1` and `num_iterations=1` plain fine-tuning. [`BASHTrainer`] mixes single tokens into whole responses and needs
    no teacher.

    Args:
        teacher_model (`str` or [`~transformers.PreTrainedModel`], *optional*):
            The teacher, or the folder or hub id of one or of a LoRA adapter. Default: `args.teacher_model_name_or_path`.
        model, args, data_collator, train_dataset, eval_dataset, processing_class, *more, **kwargs:
            As in [`IterativeSFTTrainer`].

    References: Pozzi et al., *Mitigating Exposure Bias in Large Language Model Distillation: an Imitation Learning
    Approach*, 2025, Algorithm 1.

    Example:

    ```python
    from datasets import load_dataset
    from trl_exbias import DaDDaggerConfig, DaDDaggerTrainer

    trainer = DaDDaggerTrainer(
        model="EleutherAI/gpt-neo-125m",
        teacher_model="EleutherAI/gpt-neo-1.3B",
        args=DaDDaggerConfig("runs/dad-dagger"),
        train_dataset=load_dataset("text", data_files="stories.txt", sample_by="document", split="train"),
    )
    trainer.train()
    ```
    """

    _tag_names = ["trl", "trl-exbias", "dad-dagger"]
    _name = DaDDaggerPlan.title
    _paper = {
        "title": "Mitigating exposure bias in large language model distillation: an imitation learning approach",
        # docstyle-ignore
        "citation": """\
@article{pozzi2025mitigating,
    title        = {{Mitigating exposure bias in large language model distillation: an imitation learning approach}},
    author       = {Andrea Pozzi and Alessandro Incremona and Daniele Tessera and Daniele Toti},
    year         = 2025,
    journal      = {Neural Computing and Applications}
}""",
    }
    config_class = DaDDaggerConfig
    phase_plan = DaDDaggerPlan()
    branch_kinds = ("rollout",)
    reads_documents = DaDDaggerPlan.reads_documents

    def __init__(
        self,
        model: Any,
        args: DaDDaggerConfig | TrainingArguments | None = None,
        data_collator: None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *more: Any,
        teacher_model: str | PreTrainedModel | None = None,
        **kwargs: Any,
    ):
        kwargs = named(type(self), more, kwargs)
        args = self.config_class.from_args(args, model, type(self))
        check_trainable(args, model, kwargs.get("peft_config"))
        if processing_class is None:
            processing_class = load_processing_class(model, args)
        teacher = find_teacher(args, teacher_model)
        tokenizer = None if processing_class is None else text_tokenizer(processing_class)
        check_before_loading(args, model, teacher, tokenizer, train_dataset)
        if eval_dataset is not None and args.eval_strategy == "no" and args.iteration_patience is not None:
            logger.info("Evaluating after every epoch, for `iteration_patience` (see `eval_strategy`).")
            args = copy.copy(args)  # the caller's stays as it is
            args.eval_strategy = type(args.eval_strategy)("epoch")
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            teacher=teacher,
            **kwargs,
        )
        if args.trainable_modules:
            trained = freeze_all_but(self.model, args.trainable_modules)
            logger.info(f"Training {len(trained)} parameter tensors of {', '.join(args.trainable_modules)}.")

    def build_branches(
        self, examples: list[Example], engine: RolloutEngine, options: SamplingOptions
    ) -> list[list[Branch]]:
        sampled = engine.sample(
            [example.context_ids for example in examples], options, [example.id for example in examples]
        )
        branches = []
        for example, tokens in zip(examples, sampled, strict=True):
            tokens = tokens[: len(example.response_ids)]
            changed = sum(token != true for token, true in zip(tokens, example.response_ids, strict=True))
            self.rollout_stats.add("dad/changed_rate", changed, len(tokens))
            labels = [*example.response_labels]
            if example.trained is None:
                # At the first position the context is the data's still: the gold branch has that label already.
                labels[:1] = [-100]
            branches.append([Branch("rollout", tokens, labels)])
        return branches

    def loss_terms(self) -> list[LossTerm]:
        # D_T grows by union: one set, one mean.
        return [LossTerm((GOLD, *self.branch_kinds))]

    def iterations_in_use(self, iteration: int) -> list[int]:
        # Iteration 1 trains on the data alone; rollouts begin with the second.
        return list(range(max(2, iteration - self.args.rollouts_in_use + 1), iteration + 1))

    def sampling_options(self, seed: int) -> SamplingOptions:
        # The horizon has a fixed length: an end of text is a token like any other.
        options = super().sampling_options(seed)
        # Rows of the student's embeddings that stand for no token would be ids that the teacher does not have.
        excluded = tuple(range(self.shared_vocab, LMHead(self.model).vocab_size))
        return dataclasses.replace(
            options, max_new_tokens=self.args.rollout_length, stop_token_ids=(), excluded_token_ids=excluded
        )

    def prepare_rows(self, dataset: Dataset, how: Preparation) -> Dataset:
        # An evaluation set is cut like the training set.
        length, stride = how.args.rollout_length, how.args.stride or how.args.rollout_length
        if how.form == "text" or (how.form == "tokenized" and "labels" not in dataset.column_names):
            column = how.args.dataset_text_field if self._formatting_func is None else "text"
            documents = tokenize_documents(dataset, how.processing_class, column, how.args.dataset_num_proc)
            of = "" if how.is_train else f" of the {how.name}"
            rows, cut = dataset, cut_documents(documents, how.args.context_length, length, stride, of)
        else:
            rows = super().prepare_rows(dataset, dataclasses.replace(how, is_train=True))
            cut = cut_responses(rows, length, stride)
            report_uncut(len(rows), cut, how.name, how.args.max_length)
        if isinstance(self.teacher, SeveralTeachers) and how.is_train:
            return with_teachers(cut, DOCUMENT, rows, self.teacher.teachers)
        return cut
