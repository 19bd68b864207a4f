"""The table of sample rollouts stays readable."""

from datasets import Dataset

from trl_exbias.core.branches import CONTEXT_LENGTH
from trl_exbias.loop.sample_table import print_rollouts

from ..tiny import byte_tokenizer


def test_the_labels_of_a_branch_are_cut_and_counted(capsys):
    gold = Dataset.from_list([{"input_ids": [*range(60)], "labels": [*range(60)], CONTEXT_LENGTH: 10}])
    branch = {"example_id": 0, "kind": "own", "input_ids": [40] * 50, "labels": [41] * 50}
    print_rollouts(
        Dataset.from_list([branch, {**branch, "labels": [41] * 12 + [-100] * 38}]), gold, byte_tokenizer(), 2, "x"
    )
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("→") == 24
    assert "38" in shown and shown.count("more") == 1
