"""Whatever strikes a run: it continues bit-equal, with no finished shard of rollouts lost, or says what is wrong."""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from trl_exbias.run.checkpoints import WHOLE
from trl_exbias.run.errors import RESUME_EXIT_CODE

from . import run as faults


pytestmark = pytest.mark.faults

KILLED = -9
STOPPED = 1
KILLS = [
    # fault, and whether a shard was being made
    ("kill in SFT, before any checkpoint", False),
    ("kill in SFT", False),
    ("kill while a shard is made", True),
    ("kill between shards", False),
    ("kill between rollouts and training", False),
    ("kill in an epoch", False),
    ("kill in the second rollouts", False),
    ("kill as a checkpoint begins", False),
    ("kill in a checkpoint", False),
    ("kill as a checkpoint ends", False),
    ("kill as an old checkpoint goes", False),
    ("kill in the final save", False),
]
TIMES = range(int(os.environ.get("FAULT_TIMES", "1")))


@pytest.fixture(scope="module")
def processes():
    """Processes that find everything imported, and nothing computed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.run"])
    return context


def execute_in(processes, folder: Path, fault: str = "none", **options) -> tuple[int, str]:
    """Runs until the fault strikes or the run ends: exit status, and what was printed."""
    here, there = processes.Pipe(duplex=False)
    process = processes.Process(target=faults.in_process, args=(there, str(folder / "run"), fault, options))
    process.start()
    there.close()
    with open(here.fileno(), "rb", closefd=False) as said:
        log = said.read().decode(errors="replace")
    process.join(60)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode, log


@pytest.fixture
def execute(processes, tmp_path):
    return partial(execute_in, processes, tmp_path)


@pytest.fixture(scope="module")
def uninterrupted(processes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    status, log = execute_in(processes, folder)
    assert status == 0, log[-3000:]
    return folder / "run"


def assert_equal(run: Path, uninterrupted: Path) -> None:
    """The same final weights, to the bit, and the same rollouts."""
    for name in ("model.safetensors", *(f"rollouts/iteration-{i}/manifest.json" for i in (1, 2))):
        assert (run / name).read_bytes() == (uninterrupted / name).read_bytes(), name


def shards_made(tmp_path: Path) -> list[str]:
    return (tmp_path / faults.CALLS).read_text().splitlines()


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize(("fault", "in_a_shard"), KILLS)
def test_a_killed_run_goes_on_bit_equal(fault, in_a_shard, time, execute, uninterrupted, tmp_path):
    options = {"save_total_limit": 1} if fault == "kill as an old checkpoint goes" else {}
    status, log = execute(fault, **options)
    assert status == KILLED, log[-3000:]
    status, log = execute(**options)
    assert status == 0, log[-3000:]
    assert_equal(tmp_path / "run", uninterrupted)
    made = shards_made(tmp_path)
    assert len(set(made)) == 2 * faults.SHARDS
    assert len(made) == len(set(made)) + in_a_shard, "only the shard being written is made again"


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("fault", ["SIGTERM in SFT", "SIGTERM in an epoch", "SIGTERM in rollouts"])
def test_a_preempted_run_saves_and_says_resume_me(fault, time, execute, uninterrupted, tmp_path):
    status, log = execute(fault)
    assert status == RESUME_EXIT_CODE, log[-3000:]
    saved = {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    assert {"SIGTERM in SFT": "checkpoint-1", "SIGTERM in an epoch": "checkpoint-5"}.get(fault, "checkpoint-3") in saved
    assert execute()[0] == 0
    assert_equal(tmp_path / "run", uninterrupted)
    assert len(shards_made(tmp_path)) == 2 * faults.SHARDS, "nothing is made twice"


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no room for a shard", r"iteration-1 could not be written: .*File too large.* rollouts made before are kept"),
        ("no room for a checkpoint", r"checkpoint-4 could not be written: .*checkpoint-3 is whole"),
        ("no room for the log", r"metrics.jsonl could not be written"),
    ],
)
def test_a_full_disk_stops_the_run_and_loses_nothing(fault, message, time, execute, uninterrupted, tmp_path):
    status, log = execute(fault)
    assert status == STOPPED
    assert re.search(message, log), log[-3000:]
    assert "resume_from_checkpoint=True" in log
    assert execute()[0] == 0
    assert_equal(tmp_path / "run", uninterrupted)


def shard(run: Path) -> Path:
    return run / "rollouts" / "iteration-1" / "shard-00002.parquet"


def truncate(run: Path) -> None:
    shard(run).write_bytes(shard(run).read_bytes()[:-10])


def alter(run: Path) -> None:
    content = bytearray(shard(run).read_bytes())
    content[100] ^= 1
    shard(run).write_bytes(bytes(content))


def lose_manifest(run: Path) -> None:
    (shard(run).parent / "manifest.json").unlink()


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "shard-00002.parquet was truncated or altered"),
        (alter, "shard-00002.parquet was truncated or altered"),
        (lose_manifest, "manifest.json is missing"),
        (lambda run: shard(run).unlink(), "shard-00002.parquet is missing"),
    ],
)
def test_damaged_rollouts_are_refused_and_the_remedy_works(damage, message, time, execute, uninterrupted, tmp_path):
    execute("kill in an epoch")
    run = tmp_path / "run"
    damage(run)
    status, log = execute()
    assert status == STOPPED
    assert message in log, log[-3000:]
    # "resume from a checkpoint before it was made (delete the folder …)"
    shutil.rmtree(shard(run).parent)
    assert execute(resume=str(run / "checkpoint-3"))[0] == 0
    assert_equal(run, uninterrupted)


@pytest.mark.parametrize("time", TIMES)
def test_a_damaged_checkpoint_is_passed_over(time, execute, uninterrupted, tmp_path):
    execute("kill in an epoch")
    weights = tmp_path / "run" / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    status, log = execute()
    assert "checkpoint-4 is skipped: model.safetensors has" in log
    assert status == 0
    assert_equal(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 5e-4}, "`learning_rate` was 0.001 and is now 0.0005"),
        ({"beta": 0.3}, "`beta` was 0.5 and is now 0.3"),
        ({"seed": 1}, "`seed` was 42 and is now 1"),
    ],
)
def test_a_checkpoint_from_another_recipe_is_refused(options, message, time, execute, tmp_path):
    execute("kill in an epoch")
    status, log = execute(**options)
    assert status == STOPPED
    assert message in log, log[-3000:]
    assert "start a new one from its weights" in log


@pytest.mark.parametrize("time", TIMES)
def test_another_number_of_processes_is_refused(time, execute, tmp_path):
    execute("kill in an epoch")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        + ["-m", "tests.faults.run", str(tmp_path / "run")],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    assert "`world_size` was 1 and is now 2" in done.stderr, done.stderr[-3000:]


def test_a_checkpoint_knows_what_it_is(uninterrupted):
    record = json.loads((uninterrupted / "checkpoint-4" / WHOLE).read_text())
    assert record["run"]["method"] == "BASH"
    assert record["files"]["model.safetensors"] == (uninterrupted / "checkpoint-4/model.safetensors").stat().st_size
    assert not list(uninterrupted.rglob("training_args.bin")), "nothing pickled, no token on disk"
