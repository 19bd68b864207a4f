import json

import pytest

from trl_exbias.comparing.compute import read_compute, read_logs, trained_tokens

from .runs import write_run


def test_tokens_and_seconds_of_a_run_are_those_it_logged(tmp_path):
    """BASH: 1200 trained, 300 led through the mixing; 10 + 30 + 20 seconds; no teacher."""
    found = read_compute(write_run(tmp_path / "bash"))
    assert (found.trained, found.generated, found.teacher, found.tokens) == (1200, 300, 0, 1500)
    assert found.seconds == {"sft": 10.0, "rollouts": 30.0, "joint": 20.0} and found.phase_seconds == 60
    assert found.steps == 2
    assert found.wall_seconds is None and found.host_bytes is None


def test_generated_and_teacher_tokens_add_up_over_the_phases(tmp_path):
    """Two rollout phases of 100 and 150 tokens, labelled by reading 400 and 450."""
    logs = [
        {"step": 0, "rollout/num_tokens": 100, "teacher/num_tokens": 400, "memory/device_peak_bytes": 3 * 2**30},
        {"step": 1, "rollout/num_tokens": 150, "teacher/num_tokens": 450, "memory/device_peak_bytes": 2 * 2**30},
    ]
    found = read_compute(write_run(tmp_path / "rac", "RAC", rolled_out=0, logs=logs))
    assert (found.generated, found.teacher) == (250, 850)
    assert found.device_bytes == 3 * 2**30


def test_rollouts_set_aside_were_generated_all_the_same(tmp_path):
    """Compute that was spent counts, whatever became of it; logged once more at the same step, it is not what came of it."""
    folder = write_run(tmp_path / "run", rolled_out=70, logs=[{"step": 1, "rollout/num_tokens": 300}])
    aside = folder / "rollouts" / "iteration-1.superseded-1"
    aside.mkdir(parents=True)
    stats = {"rollout/length": [70, 48], "rollout/label_length": [90, 48]}
    (aside / "manifest.json").write_text(json.dumps({"stats": stats}))
    found = read_compute(folder)
    assert (found.generated, found.teacher) == (370, 90)


def test_a_resumed_run_counts_from_nothing_again(tmp_path):
    """600, 1200 | resumed: 500, 1100: 1200 + 1100."""
    folder = write_run(tmp_path / "run", trained=(600, 1200, 500, 1100))
    assert read_compute(folder).trained == 2300
    assert trained_tokens(read_logs(folder), up_to_step=2) == 1200


def test_attempts_give_wall_clock_and_peak_memory(tmp_path):
    folder = write_run(tmp_path / "run")
    attempts = [{"seconds": 40.0, "host_bytes": 7, "status": 85}, {"seconds": 50.0, "host_bytes": 5, "status": 0}]
    (folder / "attempts.json").write_text(json.dumps(attempts))
    found = read_compute(folder)
    assert (found.wall_seconds, found.host_bytes, found.attempts) == (90.0, 7, 2)


def test_a_folder_without_a_run_or_without_logs_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        read_compute(tmp_path)
    folder = write_run(tmp_path / "run", trained=(), seconds={}, rolled_out=0)
    with pytest.raises(ValueError, match="has not trained yet"):
        read_compute(folder)


def test_a_last_line_cut_short_is_left_out_and_a_damaged_one_before_it_is_an_error(tmp_path):
    folder = write_run(tmp_path / "run")
    whole = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(whole + '{"step": 3, "num_to')
    assert read_compute(folder).trained == 1200
    (folder / "metrics.jsonl").write_text('{"step\n' + whole)
    with pytest.raises(ValueError, match="line 1"):
        read_compute(folder)


def test_seconds_an_update_share_generation_out_over_the_updates_that_use_it(tmp_path):
    """
    BASH: 2 updates of SFT in 10 s, rollouts in 30 s, 2 joint ones in 20 s. Scheduled sampling mixes within its joint phase:
    80 s, 60 of them mixing.
    """
    bash = write_run(tmp_path / "bash", trained=(1, 2, 3, 4), seconds={"rollouts": 30.0, "joint": 20.0})
    text = (bash / "metrics.jsonl").read_text()
    (bash / "metrics.jsonl").write_text(text + json.dumps({"step": 2, "seconds/sft": 10.0}) + "\n")
    assert read_compute(bash).seconds_an_update == (15.0, 10.0)
    logs = [{"step": 1, "seconds/mixing": 20.0}, {"step": 2, "seconds/mixing": 40.0}]
    scs = read_compute(write_run(tmp_path / "scs", "Scheduled sampling", seconds={"joint": 80.0}, logs=logs))
    assert scs.seconds_an_update == (30.0, 10.0) and scs.phase_seconds == 80
    assert read_compute(write_run(tmp_path / "sft", seconds={"sft": 10.0})).seconds_an_update is None


def test_a_phase_that_a_resumed_run_logs_again_counts_once_and_online_mixing_at_every_step(tmp_path):
    again = [{"step": 1, "rollout/num_tokens": 300}]
    assert read_compute(write_run(tmp_path / "bash", logs=again)).generated == 300
    logs = [{"step": 1, "mixing/num_tokens": 40}, {"step": 2, "mixing/num_tokens": 50}]
    scs = read_compute(write_run(tmp_path / "scs", "Scheduled sampling", rolled_out=0, logs=logs))
    assert scs.generated == 90
