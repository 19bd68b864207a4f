from dataclasses import replace

import pytest

from trl_exbias.comparing.alike import (
    check_alike,
    differences,
    figure_differences,
    settings_of_recipe,
    settings_of_run,
)
from trl_exbias.comparing.comparison_file import PlannedRun
from trl_exbias.comparing.compute import read_run

from .runs import figure, write_run


def settings(folder):
    return settings_of_run(read_run(folder))


def test_runs_that_differ_in_their_method_alone_are_alike(tmp_path):
    sft = write_run(tmp_path / "sft", own={"beta": 0.0, "max_steps": 40})
    rac = write_run(tmp_path / "rac", "RAC", {"max_new_tokens": 64, "output_dir": "elsewhere"})
    assert differences({"sft": settings(sft), "rac": settings(rac)}) == []


def test_every_unlike_setting_is_listed_with_who_has_what(tmp_path):
    one = write_run(tmp_path / "one")
    two = write_run(tmp_path / "two", own={"learning_rate": 5e-5, "seed": 1}, data="feed")
    with pytest.raises(ValueError) as error:
        check_alike(differences({"one": settings(one), "two": settings(two)}), (), "runs")
    message = str(error.value)
    assert "`learning_rate`: 0.0001 (one); 5e-05 (two)" in message
    assert "`seed`: 0 (one); 1 (two)" in message and "`data`: '43b5f82a' (one); 'feed' (two)" in message
    assert "--allow learning_rate --allow seed --allow data" in message


def test_what_is_allowed_is_returned_for_the_report_and_the_rest_is_refused(tmp_path):
    one = write_run(tmp_path / "one")
    two = write_run(tmp_path / "two", own={"seed": 1}, data="feed")
    found = differences({"one": settings(one), "two": settings(two)})
    assert [d.setting for d in check_alike(found, ("seed", "data"), "runs")] == ["seed", "data"]
    with pytest.raises(ValueError, match="`data`") as error:
        check_alike(found, ("seed",), "runs")
    assert "`seed`" not in str(error.value)


def test_batch_size_is_that_of_all_processes_and_steps_of_accumulation(tmp_path):
    one = write_run(tmp_path / "one", own={"per_device_train_batch_size": 8})
    two = write_run(tmp_path / "two", own={"gradient_accumulation_steps": 2})
    assert differences({"one": settings(one), "two": settings(two)}) == []


def test_runs_of_unlike_models_are_unlike(tmp_path):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", model="Qwen3")
    assert [d.setting for d in differences({"one": settings(one), "two": settings(two)})] == ["model"]


def test_recipes_are_held_against_each_other_before_anything_is_trained():
    base = {"model_name_or_path": "m", "dataset_name": "d", "per_device_train_batch_size": 4}
    one = PlannedRun("one", "sft", {}, {**base, "beta": 0.0})
    two = PlannedRun("two", "bash", {}, {**base, "dataset_train_split": "train[:9]", "lora_r": 8, "weight_decay": 0.1})
    found = differences({run.name: settings_of_recipe(run) for run in (one, two)})
    assert [d.setting for d in found] == ["weight_decay", "model", "data"]


def test_figures_under_other_settings_are_named():
    one = figure("rouge_l", 0.3, settings={"temperature": 0.0, "data": "x"})
    two = replace(one, settings={"temperature": 0.7, "data": "x"})
    found = figure_differences({"sft": {"rouge/rouge_l": one}, "bash": {"rouge/rouge_l": two}})
    with pytest.raises(ValueError, match=r"`rouge/rouge_l: temperature`: 0.0 \(sft\); 0.7 \(bash\)"):
        check_alike(found, (), "evaluations")
    assert len(check_alike(found, ("temperature",), "evaluations")) == 1
