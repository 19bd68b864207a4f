"""A teacher: loaded when it is needed, checked against the student, frozen, queried, and let go."""

import contextlib
import copy
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...core.batching import READING_PADDING, run_in_batches
from ...core.branches import Branch, concatenate
from ...core.errors import UsageError
from ...core.fingerprint import weights_fingerprint
from ...core.layout import lay_out
from ...core.model_check import check_model
from ...core.modeling import (
    LMHead,
    inference,
    model_class,
    model_device,
    position_limit,
    positions_of,
    read_backbone,
)
from ...core.reading import logit_chunks, read_along
from ...core.sharding import is_sharded
from ...core.soft_targets import DenseTarget, SoftTarget, TopKTarget, top_k_of
from ...core.upstream import adapter_config_file, cached_file
from .label_form import Content, LabelForm, Reader


logger = logging.getLogger(__name__)


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
                    lambda number, tokens: done(number),
                )

            yield read

    def check_folder(self, folder: Path) -> None:
        """Nothing: its labels' folder is its weights' alone."""

    @property
    def config(self) -> PretrainedConfig:
        """The model's configuration, read without its weights."""
        if not isinstance(self.source, str):
            return self.source.config
        return AutoConfig.from_pretrained(_base_model_name(self.source, self._hub_kwargs()), **self._hub_kwargs())

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer saved with the teacher; `None` where there is none."""
        name = self.source if isinstance(self.source, str) else self.source.config.name_or_path
        for candidate in dict.fromkeys((name, _base_model_name(name, self._hub_kwargs()))):
            # Asked for first: transformers makes an empty tokenizer for a folder without one.
            if candidate and _has_tokenizer(candidate, self._hub_kwargs()):
                return AutoTokenizer.from_pretrained(candidate, **self._hub_kwargs())
        return None

    def _load(self) -> PreTrainedModel:
        with self.loading():
            model = model_class(self.config).from_pretrained(self.source, **{"dtype": "auto", **self.init_kwargs})
        return model.requires_grad_(False)

    def _hub_kwargs(self) -> dict[str, Any]:
        known = ("revision", "trust_remote_code", "token", "local_files_only")
        return {k: v for k, v in self.init_kwargs.items() if k in known}


def check_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase | None) -> None:
    """
    Rejects a teacher whose token ids mean something else than the student's.

    Raises:
        ValueError: with an example of a token that differs.
    """
    if teacher is None:
        return
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    token = min(
        (token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)),
        key=lambda token: ours.get(token, theirs.get(token)),
    )
    raise UsageError(
        "Student and teacher need the same tokenizer: a distribution over one vocabulary says nothing about another. "
        f"The student's has {len(ours)} tokens and the teacher's {len(theirs)}; {token!r}, for one, is "
        f"{ours.get(token, 'missing')} for the student and {theirs.get(token, 'missing')} for the teacher. Choose a "
        "teacher of the same family."
    )


def shared_vocab_size(student_size: int, teacher_size: int, num_tokens: int) -> int:
    """
    How many logits student and teacher share: embeddings may be padded by different amounts after the same tokens.

    Raises:
        ValueError: if one of them has fewer rows than there are tokens.
    """
    shared = min(student_size, teacher_size)
    if student_size == teacher_size:
        return shared
    if shared < num_tokens:
        raise UsageError(
            f"Student and teacher have {student_size} and {teacher_size} logits, but the tokenizer has {num_tokens} "
            "tokens: the teacher was made for another vocabulary."
        )
    logger.warning(
        f"Student and teacher have {student_size} and {teacher_size} logits for the same {num_tokens} tokens: the padding "
        f"beyond {shared} is left out of the soft labels."
    )
    return shared


def teacher_labels(
    head: LMHead,
    model: torch.nn.Module,
    rows: Sequence[tuple[list[int], Branch]],
    vocab_size: int,
    top_k: int | None,
    temperature: float,
    max_batch_tokens: int,
    on_progress: Callable[[int, int], object] = lambda rows, tokens: None,
) -> list[dict[str, torch.Tensor]]:
    """
    What the teacher says at every labelled position of some branches, on the CPU.

    Args:
        head ([`LMHead`]): The teacher's.
        rows (`Sequence[tuple[list[int], Branch]]`): Contexts and branches.
        top_k (`int`, *optional*): Tokens kept; `None` keeps the last hidden states, which are the whole distribution.

    Returns:
        `list[dict]`: For each row `{"hidden": (n, H)}`, or `ids`, `log_probs` and `tail_log_prob`.
    """
    out: list[dict[str, torch.Tensor]] = [{} for _ in rows]

    def run(batch: list[int]) -> None:
        contexts, branches = [rows[i][0] for i in batch], [rows[i][1] for i in batch]
        hidden = read_along(model, contexts, [branch.input_ids for branch in branches], pad_token_id=0)
        labels = torch.tensor([label for branch in branches for label in branch.labels], device=hidden.device)
        hidden = hidden[labels != -100]
        if top_k is None:
            found = {"hidden": hidden}
        else:
            found = concatenate(
                top_k_of(head, hidden[part], top_k, vocab_size, temperature)
                for part in logit_chunks(hidden, head.vocab_size)
            )
        counts = [sum(label != -100 for label in branch.labels) for branch in branches]
        pieces = {name: tensor.cpu().split(counts) for name, tensor in found.items()}
        for place, i in enumerate(batch):
            out[i] = {name: split[place] for name, split in pieces.items()}
            on_progress(1, counts[place])

    lengths = [len(context) + len(branch.input_ids) - 1 for context, branch in rows]
    check_lengths(position_limit(model), lengths)
    with inference(model):
        run_in_batches(run, lengths, max_batch_tokens, READING_PADDING)
    return out


def soft_target(
    head: LMHead | None,
    model: torch.nn.Module | None,
    inputs: dict[str, torch.Tensor],
    scored: torch.Tensor,
    stored: dict[str, torch.Tensor] | None,
    vocab_size: int,
) -> SoftTarget:
    """
    The soft labels of a batch.

    Args:
        head ([`LMHead`], *optional*): The teacher's; not needed where k tokens are stored.
        model (`nn.Module`, *optional*): The loaded teacher, where nothing is stored.
        inputs (`dict`): The batch, as [`BranchCollator`] makes it.
        scored (`torch.Tensor` of shape `(rows, length)`): Positions with a label.
        stored (`dict`, *optional*): What [`teacher_labels`] found of them.
        vocab_size (`int`): Tokens that student and teacher have in common.
    """
    if stored is not None and "hidden" not in stored:
        return TopKTarget(**stored, vocab_size=vocab_size)
    assert head is not None
    if stored is not None:
        return DenseTarget(stored["hidden"].to(head.projection.weight.device), head, vocab_size)
    assert model is not None
    if not is_sharded(model):
        # It may have been placed elsewhere than the student.
        inputs = {name: value.to(model_device(model)) for name, value in inputs.items()}
    with torch.no_grad():
        hidden = read_backbone(model, **lay_out(inputs, model), use_cache=False).last_hidden_state
    return DenseTarget(hidden[scored.to(hidden.device)], head, vocab_size)


def check_lengths(limit: int | None, lengths: list[int]) -> None:
    """Raises a `ValueError` where a text is longer than the teacher's positions."""
    if limit is not None and max(lengths) > limit:
        raise UsageError(
            f"A context with its branch has {max(lengths)} tokens; the teacher has {limit} positions. Lower "
            "`context_length` or `rollout_length` (`max_length` for prompt-completion data)."
        )


def _has_tokenizer(name: str, hub_kwargs: dict[str, Any]) -> bool:
    try:
        return cached_file(name, "tokenizer_config.json", **_file_kwargs(hub_kwargs)) is not None
    except OSError:
        return False


def _file_kwargs(hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """What concerns a single file of a model."""
    return {k: v for k, v in hub_kwargs.items() if k != "trust_remote_code"}


def _base_model_name(name: str, hub_kwargs: dict[str, Any]) -> str:
    """The base model of a LoRA adapter's folder, or `name` itself."""
    file = adapter_config_file(name, **_file_kwargs(hub_kwargs)) if name else None
    if file is None:
        return name
    with open(file, encoding="utf-8") as stream:
        return json.load(stream)["base_model_name_or_path"]
