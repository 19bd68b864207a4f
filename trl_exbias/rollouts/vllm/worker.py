"""The process in which vLLM lives: calls come in as JSON lines, results and signs of life go out as JSON lines.

`python -m trl_exbias.rollouts.vllm.worker READ_FD WRITE_FD`. It ends, with everything it started, when its input does: a
parent that was killed leaves no orphan. What vLLM prints goes to stdout and stderr; the two pipes are this file's alone.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import IO, Any

from ..stop_strings import StopStrings
from .verbs import scoring_params


_SECONDS_BETWEEN_REPORTS = 0.5


class Worker:
    """
    Serves one model; its public methods are the calls.

    Args:
        report (`Callable[[int, int], None]`): Takes sequences and tokens finished since its last call.
    """

    def __init__(self, report: Callable[[int, int], None]):
        self._report = report
        self._llm: Any = None
        self._lora = None
        self._num_requests = 0
        self._stop: dict[str, Any] | None = None
        self._stop_strings: StopStrings | None = None

    def start(self, model: str, adapter: str | None, options: dict[str, Any]) -> None:
        """Loads the model; `options` are `vllm.LLM`'s."""
        from vllm import LLM

        if adapter is not None:
            from vllm.lora.request import LoRARequest

            self._lora = LoRARequest("policy", 1, adapter)
        self._llm = LLM(model, skip_tokenizer_init=True, disable_log_stats=True, **options)

    def generate(
        self, prompts: list[list[int]], params: list[dict[str, Any]], stop: dict[str, Any] | None = None
    ) -> list[list[int]]:
        """`stop` are the arguments of [`StopStrings.load`]: requests that complete one of the strings end early."""
        if stop is not None and stop != self._stop:
            self._stop, self._stop_strings = stop, _loaded(stop)
        return [drawn for drawn, _ in self._run(prompts, params, None if stop is None else self._stop_strings)]

    def score(self, sequences: list[list[int]]) -> list[list[tuple[int, float]]]:
        outputs = [output for _, output in self._run(sequences, [scoring_params()] * len(sequences))]
        return [
            [
                (next(best for best, entry in position.items() if entry.rank == 1), position[token].logprob)
                for token, position in zip(sequence[1:], output.prompt_logprobs[1:], strict=True)
            ]
            for sequence, output in zip(sequences, outputs, strict=True)
        ]

    def _run(
        self, prompts: list[list[int]], params: list[dict[str, Any]], strings: StopStrings | None = None
    ) -> list[tuple[list[int], Any]]:
        """Each request's tokens, and its last output; with `strings`, requests that complete one are taken off."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.FINAL_ONLY if strings is None else RequestOutputKind.DELTA
        engine, last = self._llm.llm_engine, {}
        names = [str(self._num_requests + i) for i in range(len(prompts))]
        self._num_requests += len(prompts)
        drawn: dict[str, list[int]] = {name: [] for name in names}
        for name, prompt, own in zip(names, prompts, params, strict=True):
            if "logit_bias" in own:  # JSON, in which keys are strings
                own = {**own, "logit_bias": {int(token): bias for token, bias in own["logit_bias"].items()}}
            sampling = SamplingParams(**own, output_kind=kind)
            engine.add_request(name, {"prompt_token_ids": prompt}, sampling, lora_request=self._lora)
        sequences, tokens, reported = 0, 0, time.monotonic()
        while engine.has_unfinished_requests():
            done: list[str] = []
            going: list[str] = []
            for output in engine.step():
                name = output.request_id
                drawn[name] += output.outputs[0].token_ids
                last[name] = output
                (done if output.finished else going).append(name)
            if strings is not None:
                ends = strings.end([drawn[name] for name in going])
                complete = [name for name, end in zip(going, ends, strict=True) if end]
                engine.abort_request(complete)
                done += complete
            sequences, tokens = sequences + len(done), tokens + sum(len(drawn[name]) for name in done)
            # A step is a sign of life, whether or not a sequence has finished in it.
            if time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                self._report(sequences, tokens)
                sequences, tokens, reported = 0, 0, time.monotonic()
        self._report(sequences, tokens)
        return [(drawn[name], last[name]) for name in names]


def _loaded(stop: dict[str, Any]) -> StopStrings | None:
    """`None` where the tokenizer cannot be loaded, as one with code of its own: then what is drawn too much is cut off later."""
    try:
        return StopStrings.load(**stop)
    except Exception as error:
        print(f"No early end by `stop_strings`: the tokenizer cannot be loaded here ({error}).", file=sys.stderr)
        return None


def calls(file: IO[str]) -> Iterator[dict[str, Any]]:
    """Calls in order. When the parent is gone the whole process group ends, whatever it is doing."""
    queue: SimpleQueue = SimpleQueue()

    def read() -> None:
        for line in file:
            queue.put(json.loads(line))
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield queue.get()


def main(read_fd: int, write_fd: int) -> None:
    """Serves until the input ends."""
    outgoing = os.fdopen(write_fd, "w")

    def write(message: dict[str, Any]) -> None:
        outgoing.write(json.dumps(message) + "\n")
        outgoing.flush()

    worker = Worker(lambda sequences, tokens: write({"sequences": sequences, "tokens": tokens}))
    for call in calls(os.fdopen(read_fd)):
        verb = call.pop("verb")
        try:
            write({"result": getattr(worker, verb)(**call)})
        except Exception as error:  # the parent's to judge
            write({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
