"""The shipped comparisons: each can be read, says what it is, and asks for what its method knows."""

import pytest

from trl_exbias.comparing.alike import check_alike, differences, settings_of_recipe
from trl_exbias.comparing.comparison_file import read_comparison
from trl_exbias.settings.recipes import recipes_folder


FILES = sorted((recipes_folder() / "compare").glob("*.yaml"))
#: The papers' ablations, and where each is.
ABLATIONS = {
    "alpha": {"dad-dagger-alpha-0.25", "next-token-alpha-1.0"},
    "beta": {"sft", "bash-beta-0.2", "bash-beta-1.0"},
    "sft_loss": {"sft", "bash-with", "bash-without", "rac-with", "rac-without"},
    "iterations": {"bash-num_iterations-1", "rac-num_iterations-3"},
    "data_size": {"sft-10pc", "bash-20pc", "rac-100pc"},
    "more_sft": {"sft-1", "sft-3", "bash-2", "rac-3"},
    "cost": {"scs", "bash"},
    "demo": {"sft", "bash", "rac", "spin"},
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_comparison_is_valid_and_alike(file):
    comparison = read_comparison(file)
    check_alike(differences({r.name: settings_of_recipe(r) for r in comparison.runs}), comparison.allow, "runs")
    first, *lines = file.read_text().splitlines()
    assert first.startswith("# ") and first.endswith((".", "GPU.", "cores."))
    assert f"#   exbias compare recipes/compare/{file.name}" in "\n".join(lines)


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_papers_ablations_are_there(name):
    comparison = read_comparison(recipes_folder() / "compare" / f"{name}.yaml")
    assert {run.name for run in comparison.runs} >= ABLATIONS[name]


def test_every_size_of_the_data_is_trained_on_for_as_many_rows():
    """Cen 2024 App. A.3: on 20 % of the data 10 epochs of SFT and 5 of BASH, on all 2 and 1."""
    for run in read_comparison(recipes_folder() / "compare" / "data_size.yaml").runs:
        share = int(run.name.split("-")[-1].removesuffix("pc")) / 100
        assert (run.keys["sft_epochs"] * share, run.keys["num_train_epochs"] * share) == (2, 1)
