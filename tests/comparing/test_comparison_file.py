import pytest
import yaml

from trl_exbias.comparing.comparison_file import read_comparison
from trl_exbias.comparing.launching import launch_arguments
from trl_exbias.settings.recipe import RecipeError


MINIMAL = {
    "base": {"model_name_or_path": "m", "dataset_name": "d", "learning_rate": 1e-4},
    "runs": {"sft": {"method": "sft"}, "bash": {"method": "bash", "beta": 0.2}},
    "evaluate": {"suites": ["likelihood"]},
}


def read(tmp_path, **changes):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **changes}, sort_keys=False))
    return read_comparison(path)


def test_a_run_has_the_base_and_its_own_keys(tmp_path):
    found = read(tmp_path)
    sft, bash = found.runs
    assert (found.name, found.equal, found.tolerance, found.output_dir) == ("mine", "tokens", 0.05, "runs/compare-mine")
    assert (sft.trains_with, sft.keys["beta"]) == ("bash", 0.0) and sft.own == {}
    assert (bash.trains_with, bash.keys["beta"], bash.keys["learning_rate"]) == ("bash", 0.2, 1e-4)
    assert bash.keys["logging_steps"] == 1 and bash.keys["report_to"] == "none"


def test_an_own_key_wins_over_the_base(tmp_path):
    found = read(tmp_path, runs={"slow": {"method": "sft", "learning_rate": 1e-6}})
    assert found.runs[0].keys["learning_rate"] == 1e-6


def test_a_sweep_makes_a_run_of_each_value_and_of_each_pair_of_values(tmp_path):
    runs = {"bash": {"method": "bash", "sweep": {"beta": [0.1, 0.2]}}, "sft": {"method": "sft"}}
    found = read(tmp_path, runs=runs, sweep={"dataset_train_split": {"half": "train[:50%]", "all": "train"}})
    assert [run.name for run in found.runs] == [
        "bash-half-beta-0.1",
        "bash-half-beta-0.2",
        "bash-all-beta-0.1",
        "bash-all-beta-0.2",
        "sft-half",
        "sft-all",
    ]
    assert found.runs[1].own == {"dataset_train_split": "train[:50%]", "beta": 0.2}


def test_a_value_of_a_sweep_may_set_several_keys(tmp_path):
    sizes = {"half": {"dataset_train_split": "train[:50%]", "num_train_epochs": 2}, "all": {"num_train_epochs": 1}}
    half, whole = read(tmp_path, runs={"bash": {"method": "bash"}}, sweep={"size": sizes}).runs
    assert half.name == "bash-half" and half.own == sizes["half"] and whole.own == {"num_train_epochs": 1}


def test_plain_sft_has_one_schedule_of_the_learning_rate(tmp_path):
    base = {**MINIMAL["base"], "restart_lr_schedule": True}
    sft, bash = read(tmp_path, base=base).runs
    assert (sft.keys["restart_lr_schedule"], bash.keys["restart_lr_schedule"]) == (False, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rnus": {}}, "`rnus` is not a known key. Did you mean `runs`?"),
        ({"runs": {}}, "`runs` is missing"),
        ({"runs": {"a": {"method": "sfft"}}}, "`method` must be one of sft, bash"),
        ({"runs": {"a": {"method": "bash", "bata": 1}}}, "a: `bata` is not a known key. Did you mean `beta`?"),
        ({"runs": {"a": {"method": "sft", "beta": 0.1}}}, "plain SFT has none"),
        ({"runs": {"a": {"method": "sft", "output_dir": "x"}}}, "set by the comparison itself"),
        ({"runs": {"a/b": {"method": "sft"}}}, "cannot name a run"),
        ({"runs": {"a": {"method": "bash", "sweep": {"beta": 0.1}}}}, "`sweep: beta` must be a list"),
        ({"runs": {"a": {"method": "bash", "sweep": {"beta": [0.1, 0.1]}}}}, "two runs are called `a-beta-0.1`"),
        ({"runs": {"a": {"method": "sft", "max_steps": 5}}}, "`max_steps` is what `equal: tokens` sets"),
        ({"runs": {"untrained": {"method": "sft"}}}, "give the run another name"),
        ({"base": {"output_dir": "x"}}, "`output_dir` is set by the comparison itself"),
        ({"evaluate": {}}, "`evaluate`: `suites` is empty"),
        ({"evaluate": {"suites": ["rogue"]}}, "Did you mean `rouge`?"),
        ({"evaluate": {"suites": ["rouge"], "split_": "x"}}, "`evaluate`: `split_` is not a known key"),
        ({"evaluate": {"suites": ["rouge"], "output": "x"}}, "`evaluate`: `output` is set by the comparison itself"),
        ({"launch": {"num_process": 8}}, "`launch`: `num_process` is not a known key. Did you mean `num_processes`?"),
        ({"demo": 5}, "`demo` must be a mapping"),
        ({"demo": {"row": 5}}, "`demo`: `row` is not a known key. Did you mean `rows`?"),
        ({"demo": {"rows": 0}}, "`rows` must be 1 or more"),
        ({"demo": {}}, "`demo` stands for `base: model_name_or_path`, `base: dataset_name`"),
        ({"equal": "flops"}, "`equal` must be one of tokens, seconds, none"),
        ({"tolerance": 5}, "`tolerance` must be a share"),
        ({"budget": "rac"}, "`budget` must be the name of a run (sft, bash), or how many tokens, got 'rac'"),
        ({"equal": "none", "budget": 100}, "`budget` has no meaning"),
    ],
)
def test_a_mistake_is_named(tmp_path, changes, message):
    with pytest.raises(RecipeError) as error:
        read(tmp_path, **changes)
    assert message in str(error.value)


def test_all_mistakes_come_at_once(tmp_path):
    with pytest.raises(RecipeError) as error:
        read(tmp_path, tolerance=-1, equal="x", nmae="y")
    assert len(error.value.problems) == 3


def test_a_length_of_ones_own_is_allowed_without_equal_compute(tmp_path):
    runs = {"a": {"method": "sft", "max_steps": 5}}
    assert read(tmp_path, runs=runs, equal="none").runs[0].keys["max_steps"] == 5


def test_the_command_line_wins_over_base_and_evaluate(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINIMAL, sort_keys=False))
    found = read_comparison(path, {"learning_rate": 5e-6, "evaluate.num_examples": 8})
    assert {run.keys["learning_rate"] for run in found.runs} == {5e-6}
    assert found.evaluate == {"suites": ["likelihood"], "num_examples": 8}


def test_flags_of_the_launcher_are_flags_of_every_run(tmp_path):
    launch = read(tmp_path, launch={"accelerate_config": "ddp", "num_processes": 8, "debug": True, "cpu": False}).launch
    assert launch_arguments(launch) == ["--accelerate_config", "ddp", "--num_processes", "8", "--debug"]
    assert launch_arguments(launch, ("num_processes",)) == ["--num_processes", "8"]
