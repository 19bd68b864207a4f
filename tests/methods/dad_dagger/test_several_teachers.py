"""Several teachers: each row learns from the one that it names, and none is loaded next to another."""

import shutil

import pytest
import torch
from datasets import Dataset

from trl_exbias import DaDDaggerConfig
from trl_exbias.core.branches import TEACHER
from trl_exbias.methods.dad_dagger.teacher import Teacher

from ...loop.runs import config, logged, weights
from ...tiny import conversations, tiny_model
from .runs import TEXTS, make, run


K = 5
NAMES = ["maths", "code", "maths"]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    for seed, name in ((7, "maths"), (8, "code"), (9, "unused")):
        tiny_model(seed=seed).save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("maths", "code")}


def named(names=NAMES, texts=TEXTS):
    return Dataset.from_dict({"text": texts, "teacher": names})


def several(teachers, **options):
    return {"dataset": named(), "teachers": teachers, "teacher_top_k": K, "num_train_epochs": 1, **options}


def watch(monkeypatch) -> list[str]:
    """Which teacher is loaded when; fails where one is loaded next to another."""
    loaded, now, load = [], [], Teacher._load

    def one_at_a_time(self):
        assert not now, "two teachers at once"
        loaded.append(self.source.rsplit("/", 1)[-1])
        return load(self)

    monkeypatch.setattr(Teacher, "_load", one_at_a_time)
    return loaded


def test_each_row_learns_from_its_own(tmp_path, teachers, monkeypatch):
    """Against runs on each teacher's rows alone, whose means weighted by labels are the mean of the run on all."""
    loaded = watch(monkeypatch)
    options = {"teacher_top_k": K, "num_train_epochs": 1, "num_iterations": 1, "alpha": 0.0}
    both = run(tmp_path / "both", dataset=named(), teachers=teachers, **options)
    assert loaded == ["maths", "code"]
    sums, labels = 0.0, 0
    for name in ("maths", "code"):
        own = named().filter(lambda row, name=name: row["teacher"] == name).remove_columns("teacher")
        part = run(tmp_path / name, dataset=own, teacher=teachers[name], **options)
        number = sum(label != -100 for row in part.train_dataset["labels"] for label in row)
        sums, labels = sums + logged(part, "loss/soft")[0] * number, labels + number
    assert logged(both, "loss/soft")[0] == pytest.approx(sums / labels, rel=1e-5)
    wrong = run(tmp_path / "wrong", dataset=named(NAMES[1:] + NAMES[:1]), teachers=teachers, **options)
    assert logged(wrong, "loss/soft")[0] != pytest.approx(sums / labels, rel=1e-5)


def test_rollouts_have_the_teacher_of_their_row(tmp_path, teachers):
    done = run(tmp_path, num_iterations=3, **several(teachers))
    rows = len(done.train_dataset)
    assert logged(done, "teacher/scored") == [rows] * 3
    assert done.train_dataset[TEACHER] == [NAMES.index(NAMES[i]) for i in done.train_dataset["document"]]


def test_a_resumed_run_is_bit_equal(tmp_path, teachers):
    options = several(teachers, num_iterations=3, save_strategy="steps", save_steps=1)
    whole = weights(run(tmp_path, **options)).clone()
    for path in tmp_path.glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > 1:
            shutil.rmtree(path)
    assert torch.equal(weights(run(tmp_path, resume=True, **options)), whole)
    with pytest.raises(ValueError, match="was made by another run: `data` was"):
        run(tmp_path, resume=True, **{**options, "dataset": named(NAMES[::-1][1:] + ["code"])})


@pytest.mark.parametrize("turns", ["last", "all"])
def test_responses_have_the_teacher_of_their_row(tmp_path, teachers, turns):
    names = [("maths", "code")[i % 3 == 0] for i in range(6)]
    data = conversations(6).add_column("teacher", names)
    made = make(tmp_path, **several(teachers, dataset=data, rollout_turns=turns))
    assert {*made.train_dataset[TEACHER]} == {0, 1}
    of_rows = [["maths", "code"].index(names[i]) for i in made.train_dataset["document"]]
    assert made.train_dataset[TEACHER] == of_rows


def test_a_teacher_that_no_row_names_is_not_loaded(tmp_path, teachers, monkeypatch):
    loaded = watch(monkeypatch)
    run(tmp_path, **several(teachers, dataset=named(["maths"] * 3), num_iterations=1))
    assert loaded == ["maths"]


def test_an_evaluation_set_needs_no_teachers(tmp_path, teachers):
    evaluation = Dataset.from_dict({"text": TEXTS})
    made = make(tmp_path, eval_dataset=evaluation, **several(teachers))
    assert "eval_loss" in made.evaluate()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["maths", "cod", "codes"],
            r"Row 1 of the training dataset names the teacher 'cod', and 1 more rows.*maths, code.*`code`",
        ),
        (["maths", None, "code"], "Row 1 of the training dataset names the teacher None. `teachers` has maths, code"),
    ],
)
def test_an_unknown_name_is_refused_before_a_model_is_loaded(tmp_path, teachers, names, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, model="no/such-model", **several(teachers, dataset=named(names)))


def test_a_missing_column_is_named(tmp_path, teachers):
    with pytest.raises(
        ValueError, match=r"`teachers` needs a column `teacher` in the training dataset.*columns are text"
    ):
        make(tmp_path, model="no/such-model", **several(teachers, dataset=named().remove_columns("teacher")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teachers": "maths"}, "`teachers` must be a mapping of names to models"),
        ({"teachers": {}}, "`teachers` must be a mapping"),
        ({"teachers": {"maths": 3}}, "`teachers` must be a mapping"),
        ({"teacher_top_k": None}, "set `teacher_top_k` and `cache_teacher=True`"),
        ({"cache_teacher": False}, "set `teacher_top_k` and `cache_teacher=True`"),
        ({"teacher_model_name_or_path": "x"}, "`teachers` are several, and `teacher_model_name_or_path` is one"),
        ({"teacher_server_base_url": "http://a"}, "`teachers` are several, and `teacher_server_base_url` is one"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(DaDDaggerConfig, tmp_path, **{"teachers": {"a": "b"}, "teacher_top_k": K, **options})


def test_json_is_read_as_a_mapping(tmp_path):
    args = config(DaDDaggerConfig, tmp_path, teachers='{"a": "b"}', teacher_top_k=K)
    assert args.teachers == {"a": "b"}


def test_one_teacher_and_several_exclude_each_other(tmp_path, teachers):
    with pytest.raises(ValueError, match="`teacher_model` is one teacher, and `teachers` are several"):
        make(tmp_path, teacher=tiny_model(seed=7), **several(teachers))
