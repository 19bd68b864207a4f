"""What an evaluation is asked to do: one dataclass, which is also the command line of `exbias evaluate`."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..core.errors import UsageError, did_you_mean


ENGINES = ("transformers", "vllm")


def _option(default: Any, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """
    What to measure, on which data, and how responses are made. `None`: the suite's own setting.

    The fields are described once, in their `help`, which `exbias evaluate --help` prints.

    Raises:
        ValueError: for a value outside its range, an unknown suite or engine (with the nearest), or a judge's suite without
            a judge.
    """

    suites: tuple[str, ...] = field(metadata={"help": "what to measure"})
    # Data
    data: tuple[str, ...] = _option(
        (), "hub id, folder or file, for every suite; SUITE=DATA for one of them (default: the suite's own)", nargs="+"
    )
    data_config: str | None = _option(None, "configuration of a hub data set")
    split: str | None = _option(None, "split or slice of one; always `train` for a single file (default: test)")
    prompt_template: str | None = _option(None, "jinja over the columns")
    completion_template: str | None = _option(None, "jinja over the columns: the reference")
    references_column: str | None = _option(None, "column with a list of references, if there are several")
    as_conversation: bool | None = _option(
        None, "render prompts with the chat template (default: as the suite has it; always for messages)"
    )
    chat_template_kwargs: str | None = _option(
        None, "arguments of the chat template for all rows, as JSON; a row's own, in a column of this name, win"
    )
    text_field: str = _option("text", "column of plain text")
    context_length: int = _option(128, "H, tokens of true context of plain text")
    num_examples: int | None = _option(None, "prompts, spread evenly over the data (default: all; 256 of plain text)")
    # Generation
    engine: str = _option("transformers", "engine that generates", choices=ENGINES)
    temperature: float | None = _option(None, "sampling temperature; 0 is greedy")
    top_p: float = _option(1.0, "nucleus")
    max_new_tokens: int | None = _option(None, "tokens after which a response is cut off")
    num_generations: int | None = _option(None, "responses to each prompt; figures are means over them, with their std")
    seed: int = _option(0, "seed of every draw, together with the prompt and the number of the response")
    max_batch_tokens: int | None = _option(
        None,
        "tokens of one batch, padding included; a killed run loses no more than that (default: 16384; 4096 on a CPU)",
    )
    # Exposure bias
    horizon: int = _option(10, "T, steps of free running")
    num_samples: int = _option(4, "free runs from each start")
    # Models
    dtype: str = _option("auto", "type of the weights: auto, float32, bfloat16, float16")
    device: str | None = _option(None, "default: an accelerator if there is one")
    trust_remote_code: bool = _option(False, "run code that comes with a model")
    # The judge
    judge_url: str | None = _option(None, "an OpenAI-compatible endpoint, e.g. http://127.0.0.1:8000/v1")
    judge_model: str | None = _option(None, "the judge's name there")
    judge_key_env: str = _option("OPENAI_API_KEY", "environment variable with the endpoint's key")
    judge_prices: tuple[float, ...] | None = _option(
        None, "dollars for a million tokens read and a million written", nargs=2, metavar=("READ", "WRITTEN")
    )
    judge_concurrency: int = _option(8, "questions to the judge at a time")
    judge_max_tokens: int = _option(512, "tokens of a judge's answer")
    judge_timeout: float = _option(60.0, "seconds to wait for an answer, at each attempt; a judge on a CPU needs more")
    judge_extra_body: str | None = _option(
        None,
        "fields of the request that only this endpoint knows, as JSON, e.g. to make a small judge keep to the form of an answer",
    )
    both_orders: bool = _option(False, "ask for a win in both orders")
    task: str | None = _option(None, "what a win is judged on: the judge's prompt (default: summarization)")
    criteria: str | None = _option(None, "G-Eval: name of shipped criteria, or a file")
    dry_run: bool = _option(False, "print the judge's prompts and the estimated cost; ask and generate nothing")
    # Other models that measure
    embedding_model: str = _option("sentence-transformers/all-mpnet-base-v2", "of the embedding distance")
    mauve_model: str = _option(
        "openai-community/gpt2-large", "of MAUVE's features: any causal model or encoder, by hub id or folder"
    )
    perplexity_model: str = _option(
        "openai-community/gpt2-large", "of the generative perplexity: any causal model, by hub id or folder"
    )
    # What is written
    output: Path = _option(Path("evaluations"), "folder of evaluation.json, plots and what is kept")
    generations: Path | None = _option(None, "folder of kept generations (default: OUTPUT/generations)")

    def __post_init__(self) -> None:
        from .suites import JUDGED, SUITES

        problems = []
        if not self.suites:
            problems.append(f"`suites` is empty. Suites: {', '.join(SUITES)}.")
        for suite in self.suites:
            if suite not in SUITES:
                problems.append(
                    f"there is no suite `{suite}`.{did_you_mean(suite, SUITES)} Suites: {', '.join(SUITES)}."
                )
        if self.engine not in ENGINES:
            problems.append(f"`engine` must be one of {', '.join(ENGINES)}, got {self.engine!r}.")
        problems += [
            f"`{name}` must be at least 1, got {getattr(self, name)}."
            for name in (
                "num_examples",
                "max_new_tokens",
                "num_generations",
                "context_length",
                "horizon",
                "num_samples",
            )
            if getattr(self, name) is not None and getattr(self, name) < 1
        ]
        if self.temperature is not None and self.temperature < 0:
            problems.append(f"`temperature` must be 0 (greedy) or more, got {self.temperature}.")
        try:
            if not isinstance(json.loads(self.judge_extra_body or "{}"), dict):
                raise UsageError("it is not a JSON object")
        except ValueError as error:
            problems.append(f"`judge_extra_body` cannot be read: {error}.")
        try:
            self.template_kwargs  # noqa: B018 - read here, where what is wrong is said
        except ValueError as error:
            problems.append(str(error))
        judged = [suite for suite in self.suites if suite in JUDGED]
        missing = [f"--{name}" for name in ("judge_url", "judge_model") if getattr(self, name) is None]
        if judged and missing:
            problems.append(
                f"{' and '.join(judged)} needs a judge: give {' and '.join(missing)} (any OpenAI-compatible endpoint, a "
                "local `vllm serve` included)."
            )
        if problems:
            raise UsageError("\n".join(problems))

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """`chat_template_kwargs`, read."""
        from ..chat.conversations import TEMPLATE_KWARGS, template_kwargs_of

        return template_kwargs_of({TEMPLATE_KWARGS: self.chat_template_kwargs})

    @property
    def generations_folder(self) -> Path:
        """Where generations are kept."""
        return self.generations or Path(self.output) / "generations"

    @property
    def verdicts_file(self) -> Path:
        """Where a judge's answers are kept."""
        return self.generations_folder.parent / "verdicts.jsonl"

    def data_of(self, suite: str) -> str | None:
        """The data given for a suite, or `None` where it is to use its own."""
        from .suites import SUITES

        found = None
        for given in self.data:
            name, equals, data = given.partition("=")
            if equals and name == suite:
                return data
            if not equals or name not in SUITES:
                found = given
        return found

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return json.loads(json.dumps(values, default=str))
