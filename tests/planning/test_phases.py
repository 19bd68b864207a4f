"""The planned phases against a run that really takes place."""

import json

import pytest
from datasets import Dataset
from trl import DatasetMixtureConfig

from trl_exbias import BASHConfig, BASHTrainer, DaDDaggerConfig
from trl_exbias.comparing.compute import read_compute
from trl_exbias.methods.dad_dagger.documents import cut_documents
from trl_exbias.planning.hub import Hub
from trl_exbias.planning.lengths import measure
from trl_exbias.planning.phases import RunShape, plan_phases
from trl_exbias.planning.rows import first_rows
from trl_exbias.settings.data_arguments import DataArguments
from trl_exbias.settings.methods import method_named

from ..loop.runs import config, logged, trainer
from ..tiny import byte_tokenizer, conversations, tiny_model


def test_steps_and_tokens_are_those_of_the_run(tmp_path):
    data = conversations(30)
    args = config(BASHConfig, tmp_path, num_iterations=2, beta=0.5, num_rollouts=20, gradient_accumulation_steps=2)
    lengths = measure(data, 30, "prompt-completion", byte_tokenizer(), args, cuts_trajectories=False)
    phases, plan = plan_phases(
        RunShape(method_named("bash").phase_plan(), args, lengths), args, lengths.scaled(30), num_processes=1
    )
    done = trainer(BASHTrainer, args, data)
    done.train()
    assert done.state.global_step == plan.total_steps == sum(phase.steps for phase in phases)
    assert [epoch.first_step for epoch in done.plan.epochs] == [epoch.first_step for epoch in plan.epochs]
    # A row that is trained on has no last token: it predicts nothing.
    trained = logged(done, "num_tokens")[-1]
    assert sum(phase.tokens for phase in phases) == pytest.approx(trained, rel=0.05)
    manifest = json.loads((tmp_path / "rollouts" / "iteration-1" / "manifest.json").read_text())
    rolled_out, rows = manifest["stats"]["rollout/length"]
    assert (phases[1].rollout_rows, rows) == (20, 20)
    assert phases[1].rollout_tokens == pytest.approx(rolled_out, rel=0.1)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rac", {"correction_template": "{{ prompt }} (answer: {{ reference }})", "max_new_tokens": 6}),
        ("bash", {"beta": 0.5, "gate": "relative", "gate_template": "{{ prompt }} (answer: {{ reference }})"}),
        ("spin", {"max_new_tokens": 6}),
        ("verified", {"max_new_tokens": 6, "verifier": "none", "num_samples": 3, "num_kept": 2}),
        ("scheduled-sampling", {"beta": 0.5, "num_rollouts": 16, "num_train_epochs": 2}),
        ("dad-dagger", {"alpha": 0.5}),
        ("dad-dagger", {"alpha": 0.5, "cache_teacher": False}),
        ("dad-dagger", {"alpha": 1.0}),
    ],
)
def test_tokens_read_for_labels_and_drawn_in_steps_are_those_of_the_run(tmp_path, method, options):
    """What runs at equal compute are given their lengths by, against what they log."""
    config_class, trainer_class = method_named(method).config_class(), method_named(method).trainer_class()
    data, of_trainer, form = conversations(20), {}, "prompt-completion"
    if method == "dad-dagger":
        data, form = (
            Dataset.from_list([{"text": text} for text in ("The fox went out.", "He prayed to the moon.")]),
            "text",
        )
        options = {**options, "context_length": 8, "rollout_length": 4}
        of_trainer = {"teacher_model": tiny_model(seed=7)} if options["alpha"] < 1 else {}
    args = config(config_class, tmp_path, num_iterations=2, sft_epochs=0, **options)
    shown = method_named(method).phase_plan().shown_template(args)
    lengths = measure(data, len(data), form, byte_tokenizer(), args, method == "dad-dagger", shown)
    phases, _ = plan_phases(
        RunShape(method_named(method).phase_plan(), args, lengths), args, lengths.scaled(len(data)), num_processes=1
    )
    done = trainer(trainer_class, args, data, **of_trainer)
    done.train()
    found = read_compute(tmp_path)
    before, online = (sum(getattr(p, key) for p in phases) for key in ("label_tokens", "online_tokens"))
    drawn = method == "scheduled-sampling"
    assert before + online * (not drawn) == pytest.approx(found.teacher, rel=0.1)
    generated = sum(phase.rollout_tokens for phase in phases) + online * drawn
    assert generated == pytest.approx(found.generated, rel=0.1)
    assert (found.teacher > 0) == (not drawn and options.get("alpha") != 1 and method != "verified")


def test_the_longest_batch_holds_every_batch_of_the_run(tmp_path):
    data = conversations(30)
    args = config(BASHConfig, tmp_path, beta=0.5, max_length=64)
    lengths = measure(data, 30, "prompt-completion", byte_tokenizer(), args, cuts_trajectories=False)
    layout = RunShape(method_named("bash").phase_plan(), args, lengths).layout(1)
    longest = max(context - 1 + 2 * response for context, response in lengths.rows)
    assert layout.rows == 4 and longest <= layout.length <= 2 * 64


def test_branches_that_share_nothing_are_rows_of_their_own(tmp_path):
    args = config(BASHConfig, tmp_path, max_length=64)
    shared, separate = (
        RunShape(method_named("bash").phase_plan(), args, None, shared=shared).layout(1) for shared in (True, False)
    )
    assert (shared.rows, shared.length) == (4, 128) and (separate.rows, separate.length) == (8, 64)


def test_trajectories_grow_by_a_branch_an_iteration_up_to_what_is_aggregated(tmp_path):
    args = config(
        DaDDaggerConfig, tmp_path, context_length=20, rollout_length=5, num_iterations=4, aggregate="2", alpha=1
    )
    shape = RunShape(method_named("dad-dagger").phase_plan(), args, None)
    assert [shape.branches(i) for i in range(5)] == [0, 0, 1, 2, 2]
    assert [shape.new_branches(i) for i in range(1, 5)] == [0, 1, 1, 1]


def test_documents_become_as_many_rows_as_the_trainer_cuts(tmp_path):
    tokenizer = byte_tokenizer()
    data = Dataset.from_list([{"text": "a" * n} for n in (10, 40, 77)])
    args = config(DaDDaggerConfig, tmp_path, context_length=20, rollout_length=5, alpha=1)
    lengths = measure(data, 3, "text", tokenizer, args, cuts_trajectories=True)
    ids = [{"input_ids": [*tokenizer(row["text"])["input_ids"], 0]} for row in data]
    assert len(lengths.rows) == len(cut_documents(Dataset.from_list(ids), 20, 5, 5))
    assert lengths.scaled(30) == 10 * len(lengths.rows) and lengths.scaled(None) is None


# The first rows


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("d.jsonl", "train", 100),
        ("d.parquet", "train[:25]", 25),
        ("d.jsonl", "train[90%:]", 10),
        ("d.csv", "train", None),
    ],
)
def test_rows_are_counted_without_reading_them(tmp_path, name, split, expected):
    data = Dataset.from_list([{"text": str(i)} for i in range(100)])
    {"jsonl": data.to_json, "parquet": data.to_parquet, "csv": data.to_csv}[name.split(".")[1]](tmp_path / name)
    args = DataArguments(dataset_name=str(tmp_path / name), dataset_train_split=split)
    found = first_rows(args, DatasetMixtureConfig(), "train", Hub())
    assert found.num_rows == expected and found.num_read == 64 and not found.is_bound


def test_a_mixture_is_added_up_and_its_columns_are_checked(tmp_path):
    Dataset.from_list([{"text": str(i), "id": i} for i in range(50)]).to_json(tmp_path / "d.jsonl")
    source = {"path": "json", "data_files": str(tmp_path / "d.jsonl"), "columns": ["text"]}
    found = first_rows(DataArguments(), DatasetMixtureConfig(datasets=[source, source]), "train", Hub())
    assert found.rows.column_names == ["text"]
    wrong = {**source, "columns": ["prompt"]}
    with pytest.raises(ValueError, match=r"`columns` names \['prompt'\]"):
        first_rows(DataArguments(), DatasetMixtureConfig(datasets=[wrong]), "train", Hub())
