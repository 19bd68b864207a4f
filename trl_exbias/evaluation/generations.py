"""Responses on disk: made once, kept for every suite and every later evaluation.

A response is a function of its key alone: the model's weights, the prompt's token ids, the sampling settings (the seed
among them) and its number among the responses to that prompt. Suites that ask for the same share it; an evaluation that was
killed continues after the last batch that it had written.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UsageError
from ..core.files import flush, lock


if TYPE_CHECKING:
    from ..rollouts.engine import RolloutEngine, SamplingOptions


logger = logging.getLogger(__name__)

#: Takes sequences and tokens finished since the last call.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Generation:
    """
    A response.

    Args:
        tokens (`list[int]`): Without the token that ended it.
        text (`str`): The same, without special tokens.
        truncated (`bool`): Whether it met `max_new_tokens` instead of ending.
    """

    tokens: list[int]
    text: str
    truncated: bool


@dataclass
class Made:
    """How much was made, and how much was there already."""

    generations: int = 0
    kept_generations: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0


class GenerationStore:
    """
    The responses of one model under one set of settings: a file of JSON lines, the first of which is the settings.

    Args:
        folder (`str` or `Path`): The folder of all models' responses.
        fingerprint (`str`): Fingerprint of the model's weights; see [`model_fingerprint`].
        settings (`dict`): Everything else that shapes a response, ready for JSON.

    Raises:
        ValueError: for a damaged file; names it and the line.
    """

    def __init__(self, folder: str | Path, fingerprint: str, settings: dict[str, Any]):
        self._header = {"format": 1, "model": fingerprint, "settings": json.loads(json.dumps(settings))}
        digest = hashlib.blake2b(json.dumps(self._header, sort_keys=True).encode(), digest_size=8).hexdigest()
        self.path = Path(folder) / fingerprint[:16] / f"{digest}.jsonl"
        self._found: dict[tuple[str, int], Generation] = {}
        self._file: FileIO  # while the store is entered
        self._whole_bytes = self._read()

    def __enter__(self) -> "GenerationStore":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab", buffering=0)
        if not lock(self._file):
            self._file.close()
            raise UsageError(
                f"Another evaluation is writing to {self.path}. Wait for it, or give another `--generations` folder."
            )
        # Another process may have written since; and a line that was being written when one died has no end.
        self._whole_bytes = self._read()
        os.ftruncate(self._file.fileno(), self._whole_bytes)
        if not self._whole_bytes:
            self._write([self._header])
            flush(self.path.parent)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def find(self, prompt_ids: Sequence[int], number: int) -> Generation | None:
        """The response `number` to a prompt, or `None` where it has not been made."""
        return self._found.get((prompt_digest(prompt_ids), number))

    def add(self, prompts: Sequence[Sequence[int]], numbers: Sequence[int], made: Sequence[Generation]) -> None:
        """Writes responses: when it returns they are on the disk."""
        keys = [(prompt_digest(prompt), number) for prompt, number in zip(prompts, numbers, strict=True)]
        self._write(
            [
                {"prompt": digest, "number": number, "prompt_ids": list(prompt), **asdict(generation)}
                for (digest, number), prompt, generation in zip(keys, prompts, made, strict=True)
            ]
        )
        self._found.update(zip(keys, made, strict=True))

    def _write(self, records: list[dict[str, Any]]) -> None:
        content = memoryview("".join(json.dumps(record) + "\n" for record in records).encode())
        while content:
            content = content[self._file.write(content) :]
        os.fsync(self._file.fileno())

    def _read(self) -> int:
        """Reads what is there and returns how many bytes of it are whole lines."""
        if not self.path.is_file():
            return 0
        lines = self.path.read_bytes().split(b"\n")
        # After the last end of a line there is nothing, or what was being written when the process died.
        whole = lines[:-1]
        for number, line in enumerate(whole, start=1):
            try:
                record = json.loads(line)
                if number == 1:
                    if record != self._header:
                        raise UsageError("other settings")
                    continue
                key = record["prompt"], record["number"]
                self._found[key] = Generation(record["tokens"], record["text"], record["truncated"])
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(
                    f"{self.path} is damaged in line {number}. Delete the line (or the file: its responses are made again)."
                ) from error
        return sum(len(line) + 1 for line in whole)


def generate(
    store: GenerationStore,
    prompts: Sequence[Sequence[int]],
    num_generations: int,
    options: "SamplingOptions",
    make_engine: Callable[[Progress], "RolloutEngine"],
    decode: Callable[[list[int]], str],
    batches: Callable[[list[int]], list[list[int]]],
    title: str = "Generating",
) -> tuple[list[list[Generation]], Made]:
    """
    `num_generations` responses to each prompt, from the store where they are, from the engine where not.

    Every draw is keyed by the seed, the prompt's token ids and the response's number, so that neither the other prompts nor
    their order change anything; equal prompts have equal responses.

    Args:
        store ([`GenerationStore`]): The store of the model and of `options`.
        prompts (`Sequence[Sequence[int]]`): Token ids.
        make_engine (`Callable`): Called with what takes its progress, and only if something has to be made.
        decode (`Callable[[list[int]], str]`): Text of a response.
        batches (`Callable[[list[int]], list[list[int]]]`):
            Which rows go together, from the length of each; a batch is on the disk before the next one is begun.

    Returns:
        `tuple[list[list[Generation]], Made]`: For each prompt its responses, in order; and what was done.
    """
    wanted = {(prompt_digest(prompt), number): prompt for number in range(num_generations) for prompt in prompts}
    made = Made(kept_generations=len(wanted))
    if any(store.find(prompt, number) is None for (_, number), prompt in wanted.items()):
        with store:
            made = _make(store, wanted, options, make_engine, decode, batches, title)
        logger.info(
            f"{title}: {made.generations} responses of {made.generated_tokens} tokens in {made.seconds:.1f} s "
            f"({made.generated_tokens / made.seconds:.0f} tokens/s); {made.kept_generations} were there already."
        )
    found = [[store.find(prompt, number) for number in range(num_generations)] for prompt in prompts]
    return [[generation for generation in row if generation is not None] for row in found], made


def _make(store: Any, wanted: Any, options: Any, make_engine: Any, decode: Any, batches: Any, title: str) -> Made:
    from tqdm.auto import tqdm

    from ..rollouts.noise import derive_seed

    # Looked for again, now that nobody else writes.
    pending = [key for key, prompt in wanted.items() if store.find(prompt, key[1]) is None]
    made = Made(len(pending), len(wanted) - len(pending))
    stops = set(options.stop_token_ids)
    with tqdm(total=len(wanted), initial=len(wanted) - len(pending), desc=title, unit="response", leave=False) as bar:
        tokens_done, started = 0, time.perf_counter()

        def report(sequences: int, tokens: int) -> None:
            nonlocal tokens_done
            tokens_done += tokens
            seconds = time.perf_counter() - started
            bar.set_postfix_str(f"{tokens_done / seconds:.0f} tokens/s", refresh=False)
            bar.update(sequences)

        engine = make_engine(report)
        # Loading is not generating.
        started = time.perf_counter()
        lengths = [len(wanted[key]) + options.max_new_tokens for key in pending]
        for batch in batches(lengths):
            keys = [pending[row] for row in batch]
            prompts = [wanted[key] for key in keys]
            ids = [derive_seed(int(digest[:16], 16), number) for digest, number in keys]
            generations = []
            for tokens in engine.sample(prompts, options, ids):
                ended = bool(tokens) and tokens[-1] in stops
                said = [int(token) for token in (tokens[:-1] if ended else tokens)]
                generations.append(Generation(said, decode(said), not ended))
                made.generated_tokens += len(tokens)
            store.add(prompts, [number for _, number in keys], generations)
    made.seconds = time.perf_counter() - started
    return made


def prompt_digest(prompt_ids: Sequence[int]) -> str:
    """Identity of a prompt: 32 hexadecimal digits of its token ids."""
    content = b"".join(int(token).to_bytes(8, "little") for token in prompt_ids)
    return hashlib.blake2b(content, digest_size=16).hexdigest()
