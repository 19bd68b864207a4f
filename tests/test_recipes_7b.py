"""The 7B recipes, run: with two layers of Mistral-7B's configuration here, and its true size on the meta device."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast
from trl import DatasetMixtureConfig, ModelConfig, get_peft_config
from trl.scripts import dpo

from trl_exbias import BASHConfig, RACConfig
from trl_exbias.cli.training import script
from trl_exbias.rollouts.vllm.policy import why_merge
from trl_exbias.run.rollout_store import RolloutStore
from trl_exbias.settings.data_arguments import DataArguments
from trl_exbias.settings.recipe import check_keys, parse
from trl_exbias.settings.recipes import accelerate_configs, names, recipe_path, recipes_folder

from .loop.runs import metrics_file
from .marks import needs_deepspeed
from .tiny import byte_tokenizer


RECIPES = [name for name in names() if "mistral-7b" in name]
LORA = [name for name in RECIPES if "lora" in name]
#: Both methods, every data set, all weights and LoRA; the other combinations are slow tests.
QUICK = {
    "bash/mistral-7b_ultrachat",
    "bash/mistral-7b_math",
    "bash/mistral-7b-lora_gsm8k",
    "rac/mistral-7b_gsm8k",
    "rac/mistral-7b-lora_ultrachat",
    "rac/mistral-7b-lora_math",
}
NUM_ROWS = 8

#: What Mistral-7B-v0.1's config.json says; sft-beta's is the same.
MISTRAL_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
}

# As zephyr's: a role's tag on a line, the text, EOS.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def tokenizer(chat_template: str | None) -> PreTrainedTokenizerFast:
    """Bytes, with Mistral's special tokens; like its own a multiple of 64, and without a token for padding."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=chat_template,
    )
    # TRL enlarges any other vocabulary when it takes over a template.
    wrapped.add_tokens([f"<filler {i}>" for i in range(-len(wrapped) % 64)])
    return wrapped


def rows(dataset: str) -> list[dict]:
    """Rows with the columns that the hub's have."""
    turns = [{"role": role, "content": f"A {role}'s word."} for role in ("user", "assistant") * 2]
    match dataset:
        case "ultrachat":
            return [{"prompt": "A", "prompt_id": str(i), "messages": turns[: 2 + 2 * (i % 2)]} for i in range(NUM_ROWS)]
        case "gsm8k":
            return [{"question": f"{i} + 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in range(NUM_ROWS)]
        case "math":
            problem = {"level": "Level 1", "type": "Algebra"}
            return [{"problem": f"${i}+1$?", "solution": f"\\boxed{{{i + 1}}}", **problem} for i in range(NUM_ROWS)]
        case "ultrafeedback":
            chosen, rejected = ([turns[0], {"role": "assistant", "content": answer}] for answer in ("Yes.", "No!"))
            scores = {"score_chosen": 8.0, "score_rejected": 2.0}
            return [
                {
                    "prompt": "A",
                    "prompt_id": str(i),
                    "chosen": chosen,
                    "rejected": rejected,
                    "messages": chosen,
                    **scores,
                }
                for i in range(NUM_ROWS)
            ]


@pytest.fixture(scope="session")
def hub(tmp_path_factory) -> Path:
    """Folders in place of the hub's repositories: two models and four data sets, with its splits."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    base = tokenizer(None)
    config = MistralConfig(**MISTRAL_7B | SMALL | {"vocab_size": len(base)}, bos_token_id=base.bos_token_id)
    model = MistralForCausalLM(config)
    with torch.no_grad():
        # One direction of the residual stream speaks for EOS, a token in five or so: responses end.
        model.model.embed_tokens.weight[:, 0] += 1.0
        model.lm_head.weight[base.eos_token_id, 0] = 0.77
    model.to(torch.bfloat16)
    for name, template in (("mistralai/Mistral-7B-v0.1", None), ("HuggingFaceH4/mistral-7b-sft-beta", CHAT_TEMPLATE)):
        model.save_pretrained(folder / name)
        tokenizer(template).save_pretrained(folder / name)
    for name, split, dataset in (
        ("HuggingFaceH4/ultrachat_200k", "data/train_sft", "ultrachat"),
        ("openai/gsm8k", "main/train", "gsm8k"),
        ("DigitalLearningGmbH/MATH-lighteval", "data/train", "math"),
        ("HuggingFaceH4/ultrafeedback_binarized", "data/train_prefs", "ultrafeedback"),
    ):
        path = folder / name / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        datasets.Dataset.from_list(rows(dataset)).to_parquet(path)
    return folder


def dry_run_of(name: str, hub: Path, folder: Path) -> Path:
    """A recipe with the hub's names replaced by folders, for a CPU, and with small batches; nothing else of it changed."""
    recipe = yaml.safe_load(recipe_path(name).read_text())
    for key in ("model_name_or_path", "chat_template_path", "dataset_name"):
        if key in recipe:
            recipe[key] = str(hub / recipe[key])
            assert Path(recipe[key]).is_dir()
    for part in recipe.get("datasets", []):
        part["path"] = str(hub / part["path"])
    recipe |= {"use_cpu": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    recipe["output_dir"] = str(folder / "run")
    if "max_new_tokens" in recipe:
        recipe["max_new_tokens"] = 8
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def parsed(name: str):
    argv = ["--config", str(recipe_path(name)), "--use_cpu", "true"]
    config_class = {"bash": BASHConfig, "rac": RACConfig}[name.split("/")[0]]
    return parse((DataArguments, config_class, ModelConfig, DatasetMixtureConfig), argv)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_a_recipe_runs_all_its_phases(name, hub, tmp_path):
    method, kind = {"bash": ("bash", "mixed"), "rac": ("rac", "own")}[name.split("/")[0]]
    recipe = yaml.safe_load(recipe_path(name).read_text())
    eos = tokenizer(None).eos_token_id
    assert script(method, ["--config", str(dry_run_of(name, hub, tmp_path))]) == 0

    run, iterations = tmp_path / "run", recipe["num_iterations"]
    config = json.loads((run / "run.json").read_text())["config"]
    for key in ("learning_rate", "bf16", "lr_scheduler_type", "warmup_steps", "max_length", "gradient_checkpointing"):
        assert config[key] == recipe[key], key
    for k in range(1, iterations + 1):
        branches = RolloutStore(run / "rollouts" / f"iteration-{k}").read()
        assert sorted(branches["example_id"]) == list(range(NUM_ROWS))
        assert set(branches["kind"]) == {kind}
        assert kind == "mixed" or sum(tokens[-1] == eos for tokens in branches["input_ids"]) > NUM_ROWS / 2
    assert not (run / "rollouts" / f"iteration-{iterations + 1}").exists()

    logs = [log for log in metrics_file(run) if "loss" in log]
    joint = [log for log in logs if f"loss/{kind}" in log]
    updates = math.ceil(NUM_ROWS / 4)
    assert len(logs) - len(joint) == updates * recipe["sft_epochs"]
    assert len(joint) == updates * sum(recipe.get("epochs_per_iteration") or [recipe["num_train_epochs"]])
    assert all(math.isfinite(log["loss/gold"]) and math.isfinite(log[f"loss/{kind}"]) for log in joint)

    if "lora" not in name:
        assert (run / "model.safetensors").is_file()
        return
    weights = load_file(run / "adapter_model.safetensors")
    # Two layers' seven linear layers, and nothing else: no embeddings, no head. In float32, where small updates count.
    assert len(weights) == 2 * 7 * 2 and {w.dtype for w in weights.values()} == {torch.float32}
    assert any(w.abs().sum() > 0 for key, w in weights.items() if "lora_B" in key), "B begins at zero: it was trained"


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("name", ["bash/mistral-7b_gsm8k", "rac/mistral-7b_math"])
def test_a_recipe_runs_on_the_machine_that_it_names(name, hub, tmp_path):
    """As its first lines say, with two processes: ZeRO-3 over bfloat16 weights."""
    method, recipe = name.split("/")[0], dry_run_of(name, hub, tmp_path)
    argv = [method, "--accelerate_config", named_machine(name), "--num_processes", "2", "--main_process_port", "0"]
    argv += ["--config", str(recipe), "--gradient_accumulation_steps", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "trl_exbias.cli.main", *argv],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    branches = RolloutStore(run / "rollouts" / "iteration-1").read()
    assert sorted(branches["example_id"]) == list(range(NUM_ROWS))
    # Each process has its part of the optimizer's state.
    assert len(list(run.glob("checkpoint-4/global_step4/*zero_pp_rank_*_optim_states.pt"))) == 2
    before, after = (load_file(path / "model.safetensors") for path in (hub / "mistralai/Mistral-7B-v0.1", run))
    assert before.keys() == after.keys() and {w.dtype for w in after.values()} == {torch.bfloat16}
    assert any((before[key] != after[key]).any() for key in before), "small updates are not rounded away"


@pytest.mark.parametrize("name", LORA)
def test_the_adapter_fits_the_true_model(name):
    """On the meta device, where 7 billion weights are a shape each."""
    _, _, model_args, _ = parsed(name)
    peft_config = get_peft_config(model_args)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(MistralConfig(**MISTRAL_7B))
        assert model.num_parameters() == 7_241_732_096
        model = get_peft_model(model, peft_config)
    linear = [(4096, 4096)] * 2 + [(4096, 1024)] * 2 + [(4096, 14336)] * 2 + [(14336, 4096)]
    expected = 32 * sum(model_args.lora_r * (inputs + outputs) for inputs, outputs in linear)
    assert model.get_nb_trainable_parameters() == (expected, 7_241_732_096 + expected)
    adapted = {key.split(".lora_")[0].rsplit(".", 1)[-1] for key, _ in model.named_parameters() if "lora_A" in key}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    # Served over the base, not merged.
    assert why_merge(model) in (None, "the base model was not loaded from a folder or hub")


@pytest.mark.parametrize("name", RECIPES)
def test_the_paper_s_settings(name):
    """Cen 2024 Table 5, with the machine that the recipe names."""
    data_args, args, model_args, mixture = parsed(name)
    machine = load_config_from_file(str(accelerate_configs()[named_machine(name)]))
    per_update = args.per_device_train_batch_size * args.gradient_accumulation_steps * machine.num_processes
    assert per_update == 512
    assert args.bf16 and machine.mixed_precision == "bf16" and model_args.dtype == "bfloat16"
    assert args.lr_scheduler_type == "cosine" and args.warmup_steps == 0.1 and args.optim == "adamw_torch_fused"
    assert args.learning_rate == (5e-5 if name in LORA else 5e-6)
    if "ultrachat" in name:
        assert (args.sft_epochs, args.num_iterations, args.epochs_per_iteration) == (0, 2, [1, 2])
        assert args.num_rollouts == 50_000
        assert (
            model_args.model_name_or_path.endswith("mistral-7b-sft-beta") and mixture.datasets[0].split == "train_sft"
        )
    else:
        assert (args.sft_epochs, args.num_iterations, args.num_train_epochs, args.num_rollouts) == (1, 1, 1, None)
        assert model_args.model_name_or_path == "mistralai/Mistral-7B-v0.1" and data_args.as_conversation
    if name.startswith("bash/"):
        assert args.beta == 0.2


@pytest.mark.parametrize("name", RECIPES)
def test_machines_and_weights_belong_together(name):
    """All weights in bfloat16 need float32 master weights: a machine that keeps them. An adapter does not."""
    if name in LORA:
        assert named_machine(name) == "single_gpu"
    else:
        assert load_config_from_file(str(accelerate_configs()[named_machine(name)])).distributed_type == "DEEPSPEED"


def named_machine(name: str) -> str:
    return re.search(r"--accelerate_config (\S+)", recipe_path(name).read_text())[1]


@pytest.mark.parametrize("name", LORA)
def test_the_commented_engine_is_a_valid_one(name, tmp_path):
    text = recipe_path(name).read_text()
    assert text.count("# rollout_engine: vllm\n") == 1
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("# rollout_engine: vllm\n", "rollout_engine: vllm\n"))
    method = name.split("/")[0]
    config_class = {"bash": BASHConfig, "rac": RACConfig}[method]
    argv = ["--config", str(path), "--use_cpu", "true"]
    check_keys(method, argv)
    assert parse((DataArguments, config_class, ModelConfig, DatasetMixtureConfig), argv)[1].rollout_engine == "vllm"


# DPO from the result


def test_dpo_starts_from_a_run_and_trains(hub, tmp_path):
    """TRL's own parser and script."""
    recipe = yaml.safe_load(recipe_path("dpo/mistral-7b_ultrafeedback").read_text())
    machine = load_config_from_file(str(recipes_folder() / "accelerate" / "zero3.yaml"))
    assert (
        "--accelerate_config recipes/accelerate/zero3.yaml" in recipe_path("dpo/mistral-7b_ultrafeedback").read_text()
    )
    batch = recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] * machine.num_processes
    assert batch == 128
    assert recipe["model_name_or_path"] in {
        yaml.safe_load(recipe_path(name).read_text())["output_dir"] for name in RECIPES if name not in LORA
    }
    assert script("rac", ["--config", str(dry_run_of("rac/mistral-7b_ultrachat", hub, tmp_path))]) == 0
    recipe["datasets"][0]["path"] = str(hub / recipe["datasets"][0]["path"])
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 1, "use_cpu": True}
    changes |= {"model_name_or_path": str(tmp_path / "run"), "output_dir": str(tmp_path / "dpo")}
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump(recipe | changes))

    parser = dpo.make_parser()
    arguments = parser.parse_args_and_config(["--config", str(tmp_path / "dpo.yaml")])
    assert (arguments[1].beta, arguments[1].learning_rate, arguments[1].max_length) == (0.01, 5e-7, 1024)
    dpo.main(*arguments)
    logs = json.loads((tmp_path / "dpo" / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    losses = [log["loss"] for log in logs if "loss" in log]
    # The model is its own reference: the first loss is that of a fair coin.
    assert len(losses) == 2 and losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert (tmp_path / "dpo" / "model.safetensors").is_file()
