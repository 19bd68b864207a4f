"""The Slurm example. Slurm itself is on no test machine: its commands are stood in for, the script is the shipped one."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from trl_exbias.run.errors import RESUME_EXIT_CODE
from trl_exbias.settings.recipe import check_keys
from trl_exbias.settings.recipes import accelerate_configs


ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "slurm" / "train_with_rollout_server.sbatch"
STAND_INS = {
    "scontrol": 'if [[ $1 == show ]]; then printf "n1\\nn2\\nn3\\n"; else echo "$*" >> calls; fi',
    "getent": 'echo "10.0.0.3 STREAM n3"',
    "curl": "exit 0",
    "squeue": 'echo "7.0 rollouts"; echo "7.1 train"',
    # Where the run's processes are signalled; here there is one.
    "scancel": 'echo "$*" >> calls; kill -TERM "$(cat train.pid)"; exit 1',
    # Ends on no signal but that one. The rank is the first node's.
    "srun": """
        case $1 in
            --job-name=rollouts) echo "$*" > server; exec sleep 60 ;;
            --job-name=train) trap "" TERM; while [[ $1 == --* ]]; do shift; done; SLURM_PROCID=0 exec "$@" ;;
        esac""",
    "exbias": 'printf "%s\\n" "$@" > argv; exec python3 "$STAND_IN"',
}
RUN = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit(int(os.environ["WHEN_TOLD"]))))
pathlib.Path("train.pid").write_text(str(os.getpid()))
time.sleep(float(os.environ["SECONDS_TO_RUN"]))
sys.exit(int(os.environ["STATUS"]))
"""


def start(folder: Path, status: int = 0, seconds: float = 0, when_told: int = RESUME_EXIT_CODE) -> subprocess.Popen:
    folder.joinpath("run.py").write_text(RUN)
    for name, body in STAND_INS.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]", "STAND_IN": str(folder / "run.py")}
    environment |= {"STATUS": str(status), "SECONDS_TO_RUN": str(seconds), "WHEN_TOLD": str(when_told)}
    environment["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(SCRIPT), "--seed", "1"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []


def setting(name: str) -> str:
    return re.search(rf"^{name}=(\S+)", SCRIPT.read_text(), re.MULTILINE)[1]


def test_bash_can_read_it():
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0


def test_its_settings_are_the_recipes():
    recipe = yaml.safe_load((ROOT / setting("RECIPE")).read_text())
    assert (setting("MODEL"), setting("RUN")) == (recipe["model_name_or_path"], recipe["output_dir"])
    assert setting("ACCELERATE_CONFIG") in accelerate_configs()
    nodes = int(re.search(r"#SBATCH --nodes=(\d+)", SCRIPT.read_text())[1]) - 1
    batch = recipe["per_device_train_batch_size"] * int(setting("ACCUMULATION")) * nodes * int(setting("GPUS"))
    assert batch == 512
    assert int(setting("RESUME_ME")) == RESUME_EXIT_CODE


def test_the_commands_that_it_starts(tmp_path):
    process = start(tmp_path)
    assert process.wait(30) == 0 and calls(tmp_path) == []
    command, *argv = (tmp_path / "argv").read_text().splitlines()
    # Relative to the repository, as the script is started.
    check_keys(command, [str(ROOT / part) if part.startswith("recipes/") else part for part in argv])
    given = dict(zip(argv[::2], argv[1::2], strict=True))
    expected = {
        "--num_machines": "2",
        "--num_processes": "16",
        "--machine_rank": "0",
        "--main_process_ip": "n1",
        "--vllm_server_base_url": "http://10.0.0.3:8000",
        "--seed": "1",
    }
    assert expected.items() <= given.items() and "--resume_from_checkpoint" not in given
    server = (tmp_path / "server").read_text()
    assert "--nodelist=n3 vllm serve" in server and "--host 10.0.0.3" in server and "--tokens-only" in server
    assert "key" not in server.lower(), "no secret on a command line"


def test_a_run_that_was_here_before_is_gone_on_with(tmp_path):
    run = tmp_path / setting("RUN")
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    assert start(tmp_path).wait(30) == 0
    argv = (tmp_path / "argv").read_text().split()
    assert argv[argv.index("--resume_from_checkpoint") + 1] == "true"


@pytest.mark.parametrize(("status", "ends", "requeued"), [(0, 0, []), (1, 1, []), (RESUME_EXIT_CODE, 0, ["requeue 7"])])
def test_only_a_run_that_asks_for_it_is_queued_again(tmp_path, status, ends, requeued):
    assert start(tmp_path, status).wait(30) == ends
    assert calls(tmp_path) == requeued


@pytest.mark.parametrize("when_told", [RESUME_EXIT_CODE, 1])
def test_the_signal_goes_to_the_training_step_and_is_waited_for(tmp_path, when_told):
    process = start(tmp_path, seconds=60, when_told=when_told)
    deadline = time.monotonic() + 30
    while not (tmp_path / "train.pid").exists() or not (tmp_path / "train.pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    told = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert time.monotonic() - told >= 1, "the script waited until the run had saved"
    assert calls(tmp_path) == ["--signal=TERM 7.1", "requeue 7"]
