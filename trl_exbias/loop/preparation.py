"""From the data that a trainer is given to the rows that it trains and evaluates on."""

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig

from ..chat.conversations import message_columns, normalised, split_turns
from ..chat.data_checks import TRAINING, check_rows, dataset_form, evaluation_name, named_parts, readable, rows_of
from ..chat.pinned_date import pinned
from ..chat.prompts import mark_responses
from ..chat.row_checks import raise_problems, row_problems
from ..chat.template_form import adapted, form_of
from ..chat.token_checks import (
    doubled_tokens,
    embedding_problems,
    labelled_rows,
    prepared_problems,
    special_token_problem,
)
from ..core.errors import UsageError
from .config import IterativeSFTConfig
from .joint import JointSFTTrainer


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """
    How a data set is to be prepared.

    Args:
        args ([`IterativeSFTConfig`]): The run's settings.
        name (`str`): What a message calls the data set.
        form (`str`): As [`~trl_exbias.chat.data_checks.dataset_form`] returns it.
        is_train (`bool`): Whether it is the training data.
        tokenise (`Callable`): TRL's own preparation.
        processing_class: The tokenizer, or the processor that it belongs to; `None` for tokenised data.
    """

    args: IterativeSFTConfig
    name: str
    form: str
    is_train: bool
    tokenise: Callable[[Dataset], Dataset]
    processing_class: Any = None


class PreparingSFTTrainer(JointSFTTrainer):
    """A [`JointSFTTrainer`] whose data sets are checked, and prepared for rollouts."""

    #: Whether plain text is read as whole documents, and a text file as one.
    reads_documents = False
    #: The tokenizer's own template at the moment when the run began: what inference renders with.
    inference_template: str | None = None
    chat_template: str | None

    def prepare_rows(self, dataset: Dataset, how: Preparation) -> Dataset:
        """
        Rows as they are read: `input_ids`, `labels`, and in training where the response begins.

        Raises:
            UsageError: for rows of which `max_length` leaves nothing to learn.
        """
        args = how.args
        has_turns = how.form in ("messages", "prompt-completion") and message_columns(dataset)
        if how.is_train and args.rollout_turns == "all" and has_turns:
            dataset, self.completion_only_loss = split_turns(dataset), True
        prepared = how.tokenise(dataset)
        if not args.packing:
            of = f"{len(dataset)} rows" if how.name == TRAINING else rows_of(how.name, len(dataset))
            raise_problems(prepared_problems(dataset, prepared, of, args.max_length, how.tokenise))
        return self.mark_rows(prepared, how) if how.is_train else prepared

    def mark_rows(self, prepared: Dataset, how: Preparation) -> Dataset:
        """Prepared rows with the columns of [`~trl_exbias.chat.prompts.mark_responses`]."""
        processes = how.args.dataset_num_proc
        if how.form == "tokenized":
            return mark_responses(prepared, how.form, None, num_proc=processes)
        templates = {"chat_template": self.inference_template, "training_template": self.chat_template}
        return mark_responses(prepared, how.form, how.processing_class, num_proc=processes, **templates)

    def _prepare_datasets(self, args: IterativeSFTConfig, train_dataset: Any, eval_dataset: Any) -> tuple[Any, Any]:
        """To be called before TRL prepares the data; prepares what TRL is told to leave alone (`skip_prepare_dataset`)."""
        self._prepared: weakref.WeakSet[Dataset] = weakref.WeakSet()
        self._train_is_prepared = False
        if not (args.dataset_kwargs or {}).get("skip_prepare_dataset", False):
            return train_dataset, eval_dataset

        def prepare(dataset: Any, name: str, is_train: bool) -> Any:
            if not isinstance(dataset, Dataset):
                return dataset
            how = Preparation(args, name, "tokenized", is_train, lambda rows: rows)
            return self.prepare_rows(labelled_rows(dataset, name), how)

        train_dataset = prepare(train_dataset, TRAINING, True)
        return train_dataset, _each(eval_dataset, lambda part, name: prepare(part, name, False))

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        trls = super()._prepare_dataset
        if args.is_plain_sft:
            with rows_named(dataset, dataset_name, args, formatting_func is not None):
                if formatting_func is None:
                    dataset = self._normalised(dataset, processing_class, args)
                return trls(dataset, processing_class, args, packing, formatting_func, dataset_name)
        # TRL prepares the training data first. An evaluation set may have any name, "train" too.
        is_train, self._train_is_prepared = not self._train_is_prepared, True
        if not isinstance(dataset, Dataset):
            return trls(dataset, processing_class, args, packing, formatting_func, dataset_name)
        if dataset in self._prepared:  # `evaluate` calls itself for each of several sets
            return dataset
        name = TRAINING if is_train else evaluation_name(dataset_name)
        form = dataset_form(dataset.column_names, args.dataset_text_field, formatting_func is not None, name)
        if formatting_func is None:
            dataset = self._normalised(dataset, processing_class, args)
        elif form == "text":
            dataset = self._formatted(dataset, formatting_func, args, name)
            formatting_func = None

        def tokenise(rows: Dataset) -> Dataset:
            return trls(rows, processing_class, args, packing, formatting_func, dataset_name)

        how = Preparation(args, name, form, is_train, tokenise, processing_class)
        prepared = self.prepare_rows(dataset, how)
        self._prepared.add(prepared)
        return prepared

    def _formatted(self, dataset: Dataset, formatting_func: Any, args: Any, name: str) -> Dataset:
        """Rows with the text that a formatting function makes of each, in `text`, as TRL would add it; checked."""
        texts = dataset.map(
            lambda row: {"text": formatting_func(row)}, num_proc=args.dataset_num_proc, desc="Formatting the rows"
        )
        raise_problems(row_problems(texts, "text", rows_of(name, len(texts)), "text", self.reads_documents))
        return texts

    def _normalised(self, dataset: Dataset, processing_class: Any, args: Any) -> Dataset:
        """Conversations as the chat template takes them, and that template at the moment when the run began."""
        if not isinstance(dataset, Dataset):
            return dataset
        own = processing_class.chat_template
        # Named templates, of which transformers chooses one by the tools, are not pinned.
        self.inference_template = pinned(own, self.rendered_on) if isinstance(own, str) else None
        if self.chat_template is not None:  # TRL's own, with marks of what the assistant says
            self.chat_template = pinned(self.chat_template, self.rendered_on)
        elif self.inference_template not in (None, own):
            self.chat_template = self.inference_template

        def adapt(messages: Any) -> Any:
            return adapted(messages, form_of(processing_class, self.chat_template))

        if args.chat_template_kwargs and (not message_columns(dataset) or "input_ids" in dataset.column_names):
            logger.warning("`chat_template_kwargs` has no effect: the data are not conversations.")
        return normalised(dataset, args.chat_template_kwargs, adapt, args.dataset_num_proc)

    def _check_prepared(self, is_tokenised: bool) -> None:
        """
        Prepared rows against the model, once it is there: its embeddings; and whether special tokens are doubled.

        Raises:
            UsageError: for tokens without an embedding.
        """
        number, tokenizer = num_embeddings_of(self.model), self._tokenizer
        if number is not None:
            problem = special_token_problem("padding", tokenizer.pad_token, tokenizer.pad_token_id, number)
            problems = [] if problem is None else [problem]
            for name, part in named_parts(self.train_dataset, self.eval_dataset).items():
                if isinstance(part, Dataset):
                    problems += embedding_problems(part, rows_of(name, len(part)), number, tokenizer)
            raise_problems(problems)
        for message in doubled_tokens(map(itemgetter("input_ids"), self.train_dataset), tokenizer, is_tokenised):
            logger.warning(message)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As [`~trl.SFTTrainer.evaluate`]; data given here are checked as those that the trainer is made with."""
        if not self.args.is_plain_sft:
            eval_dataset = _each(eval_dataset, self._checked)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def _checked(self, dataset: Any, name: str) -> Any:
        if not isinstance(dataset, Dataset) or dataset in self._prepared:
            return dataset
        dataset, embeddings = readable(dataset, name), num_embeddings_of(self.model)
        has_formatting_func = self._formatting_func is not None
        problems = check_rows(
            dataset, name, self.args.dataset_text_field, has_formatting_func, embeddings, self.reads_documents
        )
        raise_problems(problems)
        return dataset


@contextlib.contextmanager
def rows_named(dataset: Any, dataset_name: str, args: IterativeSFTConfig, has_formatting_func: bool) -> Iterator[None]:
    """
    Where TRL fails at preparing data that it alone prepares, says which rows may be why. What it takes is not looked at.

    Raises:
        UsageError: with what is wrong with the rows; the failure itself where nothing is.
    """
    try:
        yield
    except Exception as error:
        # "train" may be an evaluation set's name.
        name = "data set `train`" if dataset_name == "train" else evaluation_name(dataset_name)
        problems = check_rows(dataset, name, args.dataset_text_field, has_formatting_func)
        try:
            raise_problems(problems)
        except UsageError as found:
            raise found from error
        raise


def known_num_embeddings(model: str | torch.nn.Module, args: IterativeSFTConfig) -> int | None:
    """Tokens that a model has embeddings for, ahead of its weights; `None` where only these say it (an adapter's folder)."""
    template = args.chat_template_path
    if template is not None and not Path(template).is_file():
        return None  # TRL enlarges the embeddings for the special tokens of the model whose template it takes over
    if not isinstance(model, str):
        return num_embeddings_of(model) if isinstance(model, torch.nn.Module) else None
    try:
        config = AutoConfig.from_pretrained(
            model, revision=(args.model_init_kwargs or {}).get("revision"), trust_remote_code=args.trust_remote_code
        )
    except (OSError, ValueError):
        return None
    return getattr(config.get_text_config(), "vocab_size", None)


def num_embeddings_of(model: torch.nn.Module) -> int | None:
    """Tokens that a loaded model has embeddings for, also where they are sharded; `None` where it does not say."""
    return getattr(model.get_input_embeddings(), "num_embeddings", None)


def _each(eval_dataset: Any, change: Callable[[Any, str], Any]) -> Any:
    """`change(part, name)` of evaluation data, or of each set of a dictionary of them."""
    if isinstance(eval_dataset, dict):
        return {key: change(part, evaluation_name(key)) for key, part in eval_dataset.items()}
    return change(eval_dataset, evaluation_name("eval"))
