"""The shipped configurations of `accelerate`: its own loader and launcher take them, and start what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from trl_exbias.cli.training import resolve_accelerate_config
from trl_exbias.settings.recipe import RecipeError
from trl_exbias.settings.recipes import accelerate_configs, recipes_folder

from ..marks import needs_deepspeed
from ..ports import free_port


ROOT = Path(__file__).parents[2]
OURS = {path.stem: path for path in (recipes_folder() / "accelerate").glob("*.yaml")}
DISTRIBUTED_TYPES = {
    "cpu": "NO",
    "single_gpu": "NO",
    "ddp": "MULTI_GPU",
    "zero1": "DEEPSPEED",
    "zero2": "DEEPSPEED",
    "zero3": "DEEPSPEED",
    "zero3_offload": "DEEPSPEED",
    "fsdp2": "FSDP",
}


def environment(name: str, *flags: str) -> dict[str, str]:
    """What `accelerate launch` hands to the processes that it starts; everything else it takes from these variables."""
    argv = ["--config_file", str(OURS[name]), "--main_process_port", "0", *flags, "script.py"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(argv))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""
        return prepare_deepspeed_cmd_env(args)[1]
    return prepare_multi_gpu_env(args) if args.multi_gpu or args.use_fsdp else prepare_simple_launcher_cmd_env(args)[1]


def test_the_list_is_complete():
    assert set(OURS) == set(DISTRIBUTED_TYPES)


@pytest.mark.parametrize("name", OURS)
def test_accelerates_loader_takes_it(name):
    config = load_config_from_file(str(OURS[name]))
    assert config.distributed_type.value == DISTRIBUTED_TYPES[name]
    assert config.num_machines == 1
    assert config.num_processes == (1 if name in ("cpu", "single_gpu") else 8)
    assert config.mixed_precision == ("no" if name == "cpu" else "bf16")
    assert config.use_cpu == (name == "cpu")
    first, second, command = OURS[name].read_text().splitlines()[:3]
    assert first.startswith("# ") and second == "#" and f"--accelerate_config {name} " in command


@needs_deepspeed
@pytest.mark.parametrize(
    ("name", "stage", "offload"),
    [("zero1", 1, "none"), ("zero2", 2, "none"), ("zero3", 3, "none"), ("zero3_offload", 3, "cpu")],
)
def test_deepspeeds_plugin_is_the_one_asked_for(name, stage, offload, monkeypatch):
    from accelerate.utils import DeepSpeedPlugin

    for key, value in environment(name).items():
        monkeypatch.setenv(key, value)
    assert os.environ["ACCELERATE_USE_DEEPSPEED"] == "true"
    plugin = DeepSpeedPlugin()
    config = plugin.deepspeed_config
    assert plugin.zero_stage == stage
    assert config["zero_optimization"]["offload_optimizer"]["device"] == offload
    assert config["zero_optimization"]["offload_param"]["device"] == offload
    # Without it a saved model, and the one served to vLLM, would be a shard.
    assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] == (stage == 3)
    assert plugin.zero3_init_flag == (stage == 3)
    # Left to the recipe: a number here would silently win over it.
    for key in ("gradient_accumulation_steps", "train_micro_batch_size_per_gpu", "gradient_clipping"):
        assert config[key] == "auto"


def test_fsdps_plugin_is_version_2_with_its_keys_alone(monkeypatch):
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import OffloadPolicy, StateDictType

    for key, value in environment("fsdp2").items():
        monkeypatch.setenv(key, value)
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.cpu_ram_efficient_loading and not plugin.activation_checkpointing
    assert type(plugin.cpu_offload) is OffloadPolicy, "not its subclass that offloads"


def launch(name: str, record: Path, *flags: str) -> subprocess.Popen:
    command = ["-m", "accelerate.commands.launch", "--config_file", str(OURS[name]), *flags]
    return subprocess.Popen(
        [sys.executable, *command, "-m", "tests.cli.accelerate_probe", str(record)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


LAUNCHES = {
    "cpu": (1, "Qwen2ForCausalLM", None),
    "ddp": (2, "DistributedDataParallel", None),
    "zero1": (2, "DeepSpeedEngine", 1),
    "zero2": (2, "DeepSpeedEngine", 2),
    "zero3": (2, "DeepSpeedEngine", 3),
    "zero3_offload": (2, "DeepSpeedEngine", 3),
}


# FSDP2 is not among them: on a CPU, accelerate 1.15 runs DDP in its place.
@pytest.mark.parametrize(
    "name",
    [
        "cpu",
        pytest.param("ddp", marks=pytest.mark.slow),
        *(
            pytest.param(name, marks=[needs_deepspeed, pytest.mark.slow])
            for name in ("zero1", "zero2", "zero3", "zero3_offload")
        ),
    ],
)
def test_launching_starts_what_the_file_says(name, tmp_path):
    num_processes, engine, stage = LAUNCHES[name]
    process = launch(name, tmp_path / "record.json", "--num_processes", str(num_processes), "--main_process_port", "0")
    finish(process)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["world_size"] == num_processes
    assert record["engine"] == engine and record["zero_stage"] == stage
    # Without a GPU, DDP's processes are CPUs'.
    assert record["distributed_type"] == {"ddp": "MULTI_CPU"}.get(name, DISTRIBUTED_TYPES[name])
    assert record["loss"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", pytest.param("zero3", marks=needs_deepspeed)])
def test_two_machines_make_one_run(name, tmp_path):
    """A launcher each, as Slurm starts them; here both are this machine."""
    machines = ["--num_machines", "2", "--num_processes", "2", "--main_process_ip", "127.0.0.1"]
    machines += ["--main_process_port", str(free_port()), "--machine_rank"]
    processes = [launch(name, tmp_path / "record.json", *machines, str(rank)) for rank in range(2)]
    for process in processes:
        finish(process)
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["world_size"], record["engine"]) == LAUNCHES[name][:2]


# `--accelerate_config`


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("spelling", [["--accelerate_config", "{}"], ["--accelerate_config={}"]])
def test_a_name_stands_for_our_file(name, spelling):
    given = ["--num_processes", "2", *(part.format(name) for part in spelling), "--num_machines", "1"]
    expected = ["--config_file", str(OURS[name]), "--num_processes", "2", "--num_machines", "1"]
    assert resolve_accelerate_config(given) == expected


def test_what_only_trl_ships_and_a_path_are_found_too(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("distributed_type: 'NO'")
    assert resolve_accelerate_config(["--accelerate_config", f"{tmp_path}/mine.yaml"])[1] == f"{tmp_path}/mine.yaml"
    trls = Path(resolve_accelerate_config(["--accelerate_config", "multi_gpu"])[1])
    assert trls.parent.name == "accelerate_configs" and load_config_from_file(str(trls))
    # A file of the same name in the way does not hide ours.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zero3").write_text("")
    assert resolve_accelerate_config(["--accelerate_config", "zero3"])[1] == str(OURS["zero3"])
    assert resolve_accelerate_config(["--num_processes", "2"]) == ["--num_processes", "2"]


def test_an_unknown_name_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(RecipeError, match="Did you mean `zero3`") as error:
        resolve_accelerate_config(["--accelerate_config", "zer3"])
    assert all(name in str(error.value) for name in accelerate_configs())
    for nothing in (["--accelerate_config"], ["--accelerate_config="]):
        with pytest.raises(RecipeError, match="needs a name or a file"):
            resolve_accelerate_config(nothing)


def test_the_command_says_so_before_anything_is_imported(tmp_path):
    (tmp_path / "recipe.yaml").write_text("beta: 0.2\n")
    code = (
        "import sys; from trl_exbias.cli.main import main; status = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules and 'accelerate' not in sys.modules; sys.exit(status)"
    )
    argv = ["bash", "--config", str(tmp_path / "recipe.yaml"), "--accelerate_config", "zero4"]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 2
    assert "`zero4` is neither a file nor one of" in done.stderr and "Traceback" not in done.stderr
