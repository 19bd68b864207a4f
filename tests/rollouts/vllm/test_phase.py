"""The trainers with vLLM: the rollouts of the transformers engine, from the weights that training has arrived at."""

import logging
import os
import signal
from pathlib import Path

import pytest
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from trl_exbias import (
    BASHConfig,
    BASHTrainer,
    DaDDaggerConfig,
    DaDDaggerTrainer,
    RACConfig,
    RACTrainer,
    VerifiedAnswersConfig,
    VerifiedAnswersTrainer,
)
from trl_exbias.rollouts import RolloutEngineError
from trl_exbias.rollouts.vllm import engine as vllm_module
from trl_exbias.rollouts.vllm import phase as vllm_phase
from trl_exbias.rollouts.vllm.policy import why_merge

from ...loop.runs import config, logged, trainer, weights
from ...marks import needs_vllm
from ...tiny import conversations, tiny_model


LORA = {"r": 4, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj", "up_proj"], "lora_dropout": 0.0}


def vllm_tiny_model():
    return tiny_model("mistral", head_dim=32)


def rollouts(output_dir, iteration=1):
    files = sorted(str(path) for path in (output_dir / "rollouts" / f"iteration-{iteration}").glob("*.parquet"))
    data = load_dataset("parquet", data_files=files, split="train", cache_dir=str(output_dir / "cache"))
    return sorted(map(str, data))


def run(trainer_class, config_class, output_dir, engine, model=None, peft_config=None, **options):
    args = config(config_class, output_dir, rollout_engine=engine, temperature=0.0, learning_rate=5e-3, **options)
    done = trainer(trainer_class, args, conversations(8), model or vllm_tiny_model(), peft_config=peft_config)
    done.train()
    return done


METHODS = {
    "bash": (BASHTrainer, BASHConfig, {"beta": 0.4}),
    "rac": (RACTrainer, RACConfig, {"max_new_tokens": 12}),
    # Greedily, several samples are one and the same. At other temperatures the engines' draws are not alike.
    "verified": (
        VerifiedAnswersTrainer,
        VerifiedAnswersConfig,
        {"verifier": "none", "num_samples": 1, "max_new_tokens": 12},
    ),
    "dad-dagger": (
        DaDDaggerTrainer,
        DaDDaggerConfig,
        {"alpha": 1.0, "num_iterations": 2, "context_length": 8, "rollout_length": 4, "iteration_patience": None},
    ),
}


@needs_vllm
@pytest.mark.parametrize("method", METHODS)
def test_greedy_rollouts_and_training_are_the_transformers_engines(method, tmp_path):
    """After an epoch of SFT (DaD-DAgger: after iteration 1). The weights of the start would roll out something else."""
    trainer_class, config_class, options = METHODS[method]
    done = {
        engine: run(trainer_class, config_class, tmp_path / engine, engine, **options)
        for engine in ("transformers", "vllm")
    }
    iteration = options.get("num_iterations", 1)
    found, expected = (rollouts(tmp_path / engine, iteration) for engine in ("vllm", "transformers"))
    assert found == expected
    assert (weights(done["vllm"]) - weights(done["transformers"])).abs().max() < 1e-6
    assert logged(done["vllm"], "seconds/vllm_start")
    assert not (tmp_path / "vllm" / "served-policy").exists()
    assert (tmp_path / "vllm" / "vllm-0.log").stat().st_size > 0


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    vllm_tiny_model().save_pretrained(folder)
    return folder


@needs_vllm
@pytest.mark.parametrize(
    "own", [pytest.param({}, id="unmerged"), pytest.param({"modules_to_save": ["lm_head"]}, id="merged")]
)
def test_a_lora_policy_is_served_with_its_adapter(own, base, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for engine in ("transformers", "vllm"):
        model = AutoModelForCausalLM.from_pretrained(base)
        done = run(
            BASHTrainer,
            BASHConfig,
            tmp_path / engine,
            engine,
            model,
            LoraConfig(**LORA, **own, task_type="CAUSAL_LM"),
            beta=0.4,
        )
        assert ("merged for vLLM" in caplog.text) == (engine == "vllm" and bool(own))
        assert hasattr(done.model, "peft_config"), "the policy itself stays unmerged"
    assert rollouts(tmp_path / "vllm") == rollouts(tmp_path / "transformers")


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({}, None),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"r": 1024}, "rank 1024"),
        ({"target_modules": ["lm_head"]}, "embeddings"),
    ],
)
def test_what_vllm_cannot_serve_beside_a_base_is_merged(own, reason, base):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**{**LORA, **own}))
    found = why_merge(model)
    assert found is None if reason is None else reason in found


def test_a_base_that_is_on_no_disk_is_merged():
    assert "folder or hub" in why_merge(get_peft_model(vllm_tiny_model(), LoraConfig(**LORA)))


@needs_vllm
def test_an_adapter_that_the_server_ignored_ends_the_run_and_keeps_nothing(base, tmp_path, monkeypatch):
    """The failure this guards against: the base is served alone."""
    written = vllm_phase.write_policy

    def without_adapter(*args):
        policy = written(*args)
        return type(policy)(policy.model, None, {})

    monkeypatch.setattr(vllm_phase, "write_policy", without_adapter)
    model = AutoModelForCausalLM.from_pretrained(base)
    with pytest.raises(RolloutEngineError, match="does not serve the policy's weights"):
        run(BASHTrainer, BASHConfig, tmp_path, "vllm", model, LoraConfig(**LORA, task_type="CAUSAL_LM"))
    assert not list(tmp_path.glob("rollouts/*/*.parquet"))
    assert not (tmp_path / "served-policy").exists()


class _DiesBehindTheFirstShard(BASHTrainer):
    def build_branches(self, examples, engine, options):
        if (self.store_folder / "shard-00000.parquet").exists():
            os.kill(engine.engine.draws._process.pid, signal.SIGKILL)
        return super().build_branches(examples, engine, options)

    @property
    def store_folder(self):
        return Path(self.args.output_dir) / "rollouts" / "iteration-1"


@needs_vllm
@pytest.mark.slow
def test_a_server_that_is_gone_for_good_leaves_the_finished_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_module, "_RESTARTS", 0)

    def make(trainer_class, **options):
        args = config(BASHConfig, tmp_path, rollout_engine="vllm", save_strategy="epoch", **options)
        return trainer(trainer_class, args, conversations(128), vllm_tiny_model())

    with pytest.raises(RolloutEngineError, match="was killed by signal 9"):
        make(_DiesBehindTheFirstShard).train()
    (first,) = tmp_path.glob("rollouts/iteration-1/*.parquet")
    stored, made = first.read_bytes(), first.stat().st_mtime_ns
    done = make(BASHTrainer)
    done.train(resume_from_checkpoint=True)
    assert (first.read_bytes(), first.stat().st_mtime_ns) == (stored, made), "not rolled out again"
    assert len(list(tmp_path.glob("rollouts/iteration-1/*.parquet"))) == 2
    assert done.state.global_step == done.plan.total_steps


def test_without_vllm_the_error_comes_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_module, "find_spec", lambda name: None)
    args = config(BASHConfig, tmp_path, rollout_engine="vllm")
    with pytest.raises(ImportError, match=r"pip install trl-exbias\[vllm\]"):
        BASHTrainer(model="no/such-model", args=args, train_dataset=conversations(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rollout_engine": "vlm"}, "transformers, vllm"),
        ({"vllm_gpu_memory_utilization": 1.5}, "vllm_gpu_memory_utilization"),
        ({"vllm_tensor_parallel_size": 0}, "vllm_tensor_parallel_size"),
        ({"vllm_mix_strategy": "session"}, "forced, continue"),
        ({"vllm_timeout": 0}, "vllm_timeout"),
        ({"vllm_server_base_url": "localhost:8000"}, "http://127.0.0.1:8000"),
    ],
)
def test_bad_settings_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config(BASHConfig, tmp_path, **options)
