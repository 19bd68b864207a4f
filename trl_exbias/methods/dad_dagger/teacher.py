"""A teacher: loaded when it is needed, checked against the student, frozen, queried, and let go."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...core.fingerprint import weights_fingerprint
from ...core.model_check import check_model
from ...core.modeling import LMHead, model_class, model_device, positions_of
from ...core.sharding import is_sharded
from .label_form import Content, LabelForm, Reader
from .matching import check_tokenizers
from .saved_teacher import saved_config, saved_tokenizer
from .scoring import teacher_labels


class Teacher:
    """
    The model whose distribution a student learns.

    It is in evaluation mode, records no gradient, and is in neither the optimizer nor a checkpoint.

    Args:
        source (`str` or [`~transformers.PreTrainedModel`]):
            Hub id or folder of a model or of a LoRA adapter (its base model is found by its configuration), or a model.
        init_kwargs (`dict`, *optional*):
            For `from_pretrained`: `dtype` (default: as saved), `device_map`, `quantization_config`, `revision`,
            `trust_remote_code`, ….
        device (`torch.device`, *optional*): Where it computes, unless `device_map` or quantization says so.
        prepare (`Callable`, *optional*): Applied to the loaded model, e.g. to partition it.
        loading (`Callable`, *optional*): Returns the context manager to load it in.
    """

    def __init__(
        self,
        source: str | PreTrainedModel,
        init_kwargs: dict[str, Any] | None = None,
        device: torch.device | None = None,
        prepare: Callable[[PreTrainedModel], torch.nn.Module] = lambda model: model,
        loading: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        self.source = source
        self.init_kwargs = init_kwargs or {}
        self.device = device
        self.prepare = prepare
        self.loading = loading
        self.fingerprint: str | None = None
        #: The LM head; stays when the rest of the model goes.
        self.head: LMHead  # there once it has been loaded

    @contextlib.contextmanager
    def loaded(self) -> Iterator[torch.nn.Module]:
        """
        The model, for the length of the block. A teacher given by name is released after it, one given as a model goes
        back to where it was; `head` and `fingerprint` remain.
        """
        by_name = isinstance(self.source, str)
        model: Any = self._load() if by_name else self.source
        home = model_device(model)
        # transformers notes a map only where it has several places.
        is_mapped = hasattr(model, "hf_device_map") or (by_name and self.init_kwargs.get("device_map") is not None)
        placed = is_mapped or getattr(model, "is_quantized", False)
        moves = self.device is not None and home != self.device and not placed
        training = [module for module in model.modules() if module.training]
        if self.fingerprint is None:
            self.fingerprint = weights_fingerprint(model, trainable_only=False)
        if moves:
            model.to(self.device)
        model.eval()
        try:
            prepared = self.prepare(model)
            check_model(prepared)
            self.head = LMHead(model)
            yield prepared
        finally:
            if not by_name:
                if moves and not is_sharded(model):
                    self.head = copy.deepcopy(self.head)
                    model.to(home)
                for module in training:
                    module.training = True
            del model
            if by_name and torch.cuda.is_available():
                torch.cuda.empty_cache()

    @property
    def identity(self) -> str:
        """Part of the name of its labels' folder: other weights are another teacher."""
        assert self.fingerprint is not None, "known once it has been loaded"
        return self.fingerprint[:16]

    @property
    def positions(self) -> int | None:
        """Tokens of the longest text that it reads; `None` for no limit."""
        return positions_of(self.config)

    def check_student(self, tokenizer: PreTrainedTokenizerBase, top_k: int | None) -> None:
        """Raises a `ValueError` where its token ids mean something else than the student's."""
        check_tokenizers(tokenizer, self.tokenizer())

    @contextlib.contextmanager
    def reading(self, form: LabelForm) -> Iterator[Reader]:
        """What works out labels: the loaded model, for the length of the block."""
        with self.loaded() as model:

            def read(
                folder: Path, contents: list[Content], done: Callable[[int], object]
            ) -> list[dict[str, torch.Tensor]]:
                return teacher_labels(
                    self.head,
                    model,
                    contents,
                    form.vocab_size,
                    form.top_k,
                    form.temperature,
                    form.batch_tokens,
                    done,
                )

            yield read

    def check_folder(self, folder: Path) -> None:
        """Nothing: its labels' folder is its weights' alone."""

    @property
    def config(self) -> PretrainedConfig:
        """The model's configuration, read without its weights."""
        return saved_config(self.source, self.init_kwargs) if isinstance(self.source, str) else self.source.config

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer saved with the teacher; `None` where there is none."""
        name = self.source if isinstance(self.source, str) else self.source.config.name_or_path
        return saved_tokenizer(name, self.init_kwargs)

    def _load(self) -> PreTrainedModel:
        with self.loading():
            model = model_class(self.config).from_pretrained(self.source, **{"dtype": "auto", **self.init_kwargs})
        return model.requires_grad_(False)
