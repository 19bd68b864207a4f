import re
import subprocess
import sys

import pytest
import yaml
from trl import DatasetMixtureConfig, ModelConfig

from trl_exbias.settings.data_arguments import DataArguments
from trl_exbias.settings.methods import method_named
from trl_exbias.settings.recipe import RecipeError, check_keys, parse
from trl_exbias.settings.recipes import accelerate_configs, names, recipe_path


def classes(method):
    return (DataArguments, method_named(method).config_class(), ModelConfig, DatasetMixtureConfig)


def recipe(tmp_path, **content) -> list[str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(tmp_path / "run"), "use_cpu": True, "bf16": False, **content}))
    return ["--config", str(path)]


def test_a_recipe_sets_defaults_and_the_command_line_wins(tmp_path):
    argv = [*recipe(tmp_path, beta=0.3, learning_rate="1e-5"), "--beta", "0.4"]
    _, args, _, _ = parse(classes("bash"), argv)
    assert args.beta == 0.4 and args.learning_rate == 1e-5


def test_every_unknown_key_is_named_with_its_nearest(tmp_path):
    argv = [*recipe(tmp_path, learning_rat=1, bheta=0.1), "--num_iteration", "2"]
    with pytest.raises(RecipeError) as error:
        check_keys("bash", argv)
    message = str(error.value)
    assert "3 problems" in message
    for expected in ("Did you mean `learning_rate`?", "Did you mean `beta`?", "Did you mean `num_iterations`?"):
        assert expected in message


def test_the_launchers_part_of_a_command_line_is_found(tmp_path):
    argv = ["--num_processes", "2", *recipe(tmp_path), "--beta", "0.1", "--accelerate_config", "zero3"]
    assert check_keys("bash", argv) == ["--num_processes", "2", "--accelerate_config", "zero3"]


def test_a_key_of_another_method_is_unknown(tmp_path):
    with pytest.raises(RecipeError, match="`correction_template` is not a known key"):
        check_keys("bash", recipe(tmp_path, correction_template="qa"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"loss_type": "nl"}, r"`loss_type: nl` is not one of nll, dft, chunked_nll. Did you mean `nll`\?"),
        ({"rollout_engine": "transformer"}, r"Did you mean `transformers`\?"),
        ({"beta": "high"}, "`beta: high` is not a number"),
        ({"num_iterations": "two"}, "`num_iterations: two` is not a number"),
    ],
)
def test_impossible_values_of_a_recipe_are_found_before_anything_is_built(tmp_path, content, message):
    with pytest.raises(RecipeError, match=message):
        parse(classes("bash"), recipe(tmp_path, **content))


def test_impossible_combinations_are_reported_as_the_recipes(tmp_path):
    with pytest.raises(RecipeError, match="`beta` must be a probability"):
        parse(classes("bash"), recipe(tmp_path, beta=3))


@pytest.mark.parametrize(("content", "message"), [("[1, 2]", "a mapping"), ("a: [", "cannot be read")])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, message):
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(RecipeError, match=message):
        check_keys("bash", ["--config", str(tmp_path / "recipe.yaml")])


def test_a_missing_recipe_is_refused():
    with pytest.raises(RecipeError, match="cannot be read"):
        check_keys("bash", ["--config", "nowhere.yaml"])


def test_a_mistyped_key_is_answered_without_importing_torch(tmp_path):
    code = (
        "import sys; from trl_exbias.cli.main import main; status = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "rac", *recipe(tmp_path, learning_rat=1)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "`learning_rat` is not a known key. Did you mean `learning_rate`?" in done.stderr
    assert not (tmp_path / "run").exists()


# The shipped recipes


@pytest.mark.parametrize("name", names())
def test_every_shipped_recipe_parses_strictly(name, tmp_path):
    method = name.split("/")[0]
    argv = ["--config", str(recipe_path(name)), "--use_cpu", "true", "--output_dir", str(tmp_path)]
    check_keys(method, argv)
    data_args, args, model_args, mixture = parse(classes(method), argv)
    assert model_args.model_name_or_path
    assert bool(data_args.dataset_name) != bool(mixture.datasets)
    assert args.max_length


@pytest.mark.parametrize("name", [name for name in names() if "7b" in name or "1b" in name])
def test_the_papers_recipes_have_its_global_batch_and_say_where_values_are_from(name):
    text = recipe_path(name).read_text()
    values = yaml.safe_load(text)
    machine = yaml.safe_load(accelerate_configs()[re.search(r"--accelerate_config (\S+)", text)[1]].read_text())
    batch = values["per_device_train_batch_size"] * values["gradient_accumulation_steps"]
    assert batch * machine["num_processes"] == 512, "with the command that the recipe names"
    unsourced = [
        line
        for line in text.splitlines()
        if ":" in line
        and not line.startswith("#")
        and "#" not in line
        and line.split(":")[0].strip()
        not in {
            "dataset_config",
            "prompt_template",
            "completion_template",
            "as_conversation",
            "- path",
            "split",
            "columns",
            "model_name_or_path",
            "chat_template_path",
            "gradient_checkpointing",
            "logging_steps",
            "save_strategy",
            "report_to",
            "output_dir",
        }
    ]
    assert unsourced == []


def test_recipes_of_the_methods_differ_only_in_the_methods_own_keys():
    own = {"beta", "correction_template", "max_new_tokens", "spin_lambda", "output_dir"}
    own |= {"verifier", "num_samples", "num_kept", "soft_labels", "self_teacher", "divergence", "teacher_top_k"}
    siblings = [name.split("/") for name in names() if name.split("/")[0] not in ("bash", "dad-dagger")]
    assert {method for method, _ in siblings} == {"rac", "spin", "scheduled-sampling", "verified"}
    for method, name in siblings:
        plain = name.removesuffix("_soft")
        bash, other = (yaml.safe_load(recipe_path(path).read_text()) for path in (f"bash/{plain}", f"{method}/{name}"))
        # SPIN's loss moves a whole response at once: its step is smaller.
        allowed = own | ({"learning_rate"} if (method, name) == ("spin", "smollm2-135m_gsm8k") else set())
        assert {key for key in {*bash, *other} if bash.get(key) != other.get(key)} <= allowed


@pytest.mark.parametrize("name", ["sft/pythia-1b_tldr", "sft/pythia-1b_tldr_neftune"])
def test_recipes_for_trls_own_sft_are_parsed_by_it_and_have_bashs_settings(name):
    from trl.scripts import sft

    argv = ["--config", str(recipe_path(name)), "--use_cpu", "true", "--bf16", "false"]
    script_args, args, model_args, *_ = sft.make_parser().parse_args_and_config(argv)
    assert (script_args.dataset_name, model_args.model_name_or_path) == ("trl-lib/tldr", "EleutherAI/pythia-1b")
    assert (args.num_train_epochs, args.neftune_noise_alpha) == (2, 5 if "neftune" in name else None)
    bash, own = (yaml.safe_load(recipe_path(n).read_text()) for n in ("bash/pythia-1b_tldr", name))
    differing = {key for key in {*bash, *own} if bash.get(key) != own.get(key)}
    method = {"sft_epochs", "num_iterations", "num_train_epochs", "beta", "restart_lr_schedule", "neftune_noise_alpha"}
    assert differing <= method | {"output_dir"}


def test_the_command_that_trls_script_documents_is_refused_for_packing_alone():
    """`trl/scripts/sft.py`, with ours in place of it."""
    argv = [
        "--model_name_or_path",
        "Qwen/Qwen2-0.5B",
        "--dataset_name",
        "trl-lib/Capybara",
        "--learning_rate",
        "2.0e-5",
        "--num_train_epochs",
        "1",
        "--packing",
        "--per_device_train_batch_size",
        "2",
        "--gradient_accumulation_steps",
        "8",
        "--eos_token",
        "<|im_end|>",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "100",
        "--output_dir",
        "Qwen2-0.5B-SFT",
        "--push_to_hub",
        "--use_cpu",
        "--bf16",
        "False",
    ]
    check_keys("bash", argv)
    with pytest.raises(RecipeError) as error:
        parse(classes("bash"), argv)
    (line,) = error.value.problems
    assert line.startswith("`packing=True` is not supported") and "1 problem\n" in str(error.value)
    _, args, _, _ = parse(classes("bash"), [*argv, "--num_iterations", "0"])
    assert args.packing
