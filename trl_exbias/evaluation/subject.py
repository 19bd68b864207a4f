"""A model under evaluation: its tokenizer at once, its weights when something needs them, its responses from the disk."""

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.errors import UsageError
from .generations import Generation, GenerationStore, Made, Progress, generate
from .identity import base_of_adapter, local_folder, model_fingerprint
from .loading import device_of, load_model
from .options import EvaluationOptions


# vLLM batches by itself, and best when it has much to choose from; so much is lost when it is killed.
_VLLM_BATCH = 512
# Tokens that it makes room for at least: one start is then enough for most suites.
_VLLM_ROOM = 1024
_OF_DRAWS = ("top_p", "seed")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """
    How a suite's responses are drawn.

    Args:
        temperature (`float`): 0 is greedy.
        max_new_tokens (`int`): Tokens after which a response is cut.
        num_generations (`int`): Responses to each prompt.
        top_p (`float`), seed (`int`): As in [`SamplingOptions`].
    """

    temperature: float = 0.0
    max_new_tokens: int = 256
    num_generations: int = 1
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.num_generations > 1:
            raise UsageError(
                f"`num_generations={self.num_generations}` greedy responses are all the same: raise `temperature`, or ask "
                "for one."
            )

    def as_dict(self) -> dict[str, Any]:
        """What shapes a response: the most probable token depends on neither seed nor nucleus."""
        return {key: value for key, value in asdict(self).items() if self.temperature > 0 or key not in _OF_DRAWS}


class EvaluatedModel:
    """
    A model under evaluation.

    Args:
        name (`str`): What it is called in the report.
        model (`str`): Hub id, folder, LoRA adapter or run directory.
        options ([`EvaluationOptions`]): How it is loaded and generates.

    Raises:
        ValueError: if there is no such model.
    """

    def __init__(self, name: str, model: str, options: EvaluationOptions):
        from transformers import AutoTokenizer

        self.name, self.given, self.options = name, model, options
        self.folder = local_folder(model)
        self.made = Made()
        self.tokenizer = AutoTokenizer.from_pretrained(
            self._tokenizer_folder, trust_remote_code=options.trust_remote_code
        )
        self._stack = contextlib.ExitStack()
        self._engine: Any = None
        self._room = 0
        self._report: Progress = lambda sequences, tokens: None

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the weights; see [`model_fingerprint`]."""
        return model_fingerprint(self.folder)

    @cached_property
    def vocabulary(self) -> str:
        """Identity of the tokenizer's vocabulary: what counts tokens compares only where it is the same."""
        entries = json.dumps(sorted(self.tokenizer.get_vocab().items())).encode()
        return hashlib.blake2b(entries, digest_size=8).hexdigest()

    @cached_property
    def batch_tokens(self) -> int:
        """Tokens of one batch."""
        return self.options.max_batch_tokens or (4096 if device_of(self.options) == "cpu" else 16384)

    @cached_property
    def _base_folder(self) -> Path:
        base = base_of_adapter(self.folder)
        return self.folder if base is None else local_folder(base)

    @property
    def _tokenizer_folder(self) -> Path:
        # For a folder without one, transformers makes up an empty tokenizer.
        for folder in (self.folder, self._base_folder):
            if any((folder / name).is_file() for name in TOKENIZER_FILES):
                return folder
        raise UsageError(f"{self.folder} holds no tokenizer ({', '.join(TOKENIZER_FILES)}): save one with the model.")

    @cached_property
    def positions(self) -> int | None:
        """Tokens of the longest sequence that the model was made for, where it says."""
        from transformers import AutoConfig

        from ..core.modeling import positions_of

        config = AutoConfig.from_pretrained(self._base_folder, trust_remote_code=self.options.trust_remote_code)
        return positions_of(config)

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a response."""
        from transformers import GenerationConfig

        from ..chat.stop_tokens import stop_token_ids

        try:
            config = GenerationConfig.from_pretrained(self._base_folder)
        except OSError:
            config = None
        return stop_token_ids(self.tokenizer, config, None, **self.options.template_kwargs)

    @cached_property
    def model(self) -> Any:
        """The weights, for suites that look inside. What generates with a copy of its own is ended first."""
        self._end_engine()
        return load_model(self.folder, self.options)

    def generate(self, prompts: list[list[int]], sampling: Sampling) -> list[list[Generation]]:
        """
        Responses to each prompt, made or found.

        Raises:
            ValueError: if a prompt leaves no room for them within the model's positions.
        """
        from ..rollouts import SamplingOptions

        self._check_lengths(prompts, sampling.max_new_tokens)
        drawing = SamplingOptions(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_new_tokens=sampling.max_new_tokens,
            stop_token_ids=self.stop_token_ids,
            seed=sampling.seed,
        )
        found, made = generate(
            self.store(sampling),
            prompts,
            sampling.num_generations,
            drawing,
            lambda report: self._start(report, max(map(len, prompts)) + sampling.max_new_tokens),
            lambda tokens: self.tokenizer.decode(tokens, skip_special_tokens=True),
            self._batches,
            f"Generating {self.name}",
        )
        self.made = Made(*(getattr(self.made, f.name) + getattr(made, f.name) for f in fields(Made)))
        return found

    def store(self, sampling: Sampling) -> GenerationStore:
        """Where its responses under these settings are kept."""
        settings = {
            **{key: value for key, value in sampling.as_dict().items() if key != "num_generations"},
            "stop_token_ids": list(self.stop_token_ids),
            # The engines draw from the same distribution, but not the same.
            "engine": self.options.engine,
            "dtype": self.options.dtype,
        }
        return GenerationStore(self.options.generations_folder, self.fingerprint, settings)

    def close(self) -> None:
        """Ends what was started to generate, and lets go of the weights."""
        self._end_engine()
        self.__dict__.pop("model", None)

    def _end_engine(self) -> None:
        self._stack.close()
        self._engine = None

    def _check_lengths(self, prompts: list[list[int]], max_new_tokens: int) -> None:
        longest = max(map(len, prompts))
        if self.positions is not None and longest + max_new_tokens > self.positions:
            raise UsageError(
                f"{self.name}: the longest prompt has {longest} tokens; with {max_new_tokens} more the sequence is beyond "
                f"the model's {self.positions} positions. Lower `max_new_tokens`, or leave out or shorten long prompts."
            )

    def _start(self, report: Progress, longest: int) -> Any:
        """The engine, with room for sequences of `longest` tokens; it stays until [`close`]."""
        from ..rollouts import TransformersEngine

        self._report = report
        if self._engine is not None and longest > self._room:
            self._end_engine()
        if self._engine is None and self.options.engine == "vllm":
            self._room = min(max(longest, _VLLM_ROOM), self.positions or longest)
            self._engine = self._start_vllm()
        elif self._engine is None:
            pad = self.tokenizer.pad_token_id
            pad = self.stop_token_ids[0] if pad is None else pad
            self._engine = TransformersEngine(
                self.model, pad, self.batch_tokens, on_progress=lambda *done: self._report(*done)
            )
            self._room = self.positions or sys.maxsize
        return self._engine

    def _start_vllm(self) -> Any:
        from ..rollouts import VLLMEngine

        folder = self.folder if base_of_adapter(self.folder) is None else self._merged()
        log = Path(self.options.output) / "vllm.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        engine = VLLMEngine(
            folder,
            dtype=None if self.options.dtype == "auto" else self.options.dtype,
            max_model_len=self._room,
            log=log,
            on_progress=lambda *done: self._report(*done),
        )
        return self._stack.enter_context(engine)

    def _merged(self) -> Path:
        """A copy with the adapter merged, there as long as the engine: not every adapter can be served with its base."""
        from ..core.generation_config import make_saveable
        from ..core.merging import merged

        folder = tempfile.mkdtemp(prefix="trl-exbias-merged-")
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        model = merged(load_model(self.folder, replace(self.options, device="cpu")))
        make_saveable(model)
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return Path(folder)

    def _batches(self, lengths: list[int]) -> list[list[int]]:
        from ..core.batching import token_batches

        if self.options.engine == "vllm":
            rows = range(len(lengths))
            return [[*rows[start : start + _VLLM_BATCH]] for start in range(0, len(rows), _VLLM_BATCH)]
        return token_batches(lengths, self.batch_tokens)
