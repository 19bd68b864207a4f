"""`exbias check` of a recipe with a teacher: it is there, goes with the student, and is planned."""

import json

from transformers import AutoTokenizer

from ...families import family
from ...methods.dad_dagger.serving import TeacherServer
from ...ports import free_port
from ...tiny import VOCAB_SIZE, byte_tokenizer, tiny_model
from .conftest import messages


def dad(folder, **changes):
    return {
        **dict.fromkeys(("beta", "as_conversation", "prompt_template", "completion_template")),
        "dataset_name": str(folder / "stories.jsonl"),
        "context_length": 32,
        "rollout_length": 8,
        "teacher_model_name_or_path": str(folder / "model"),
        **changes,
    }


def test_a_teacher_must_be_there_and_speak_the_students_tokens(check, recipe, folder):
    status, found = check(recipe(**dad(folder)))
    assert (status, found["method"], found["errors"]) == (0, "dad-dagger", [])
    assert {"soft labels 1", "soft labels 2"} <= {memory["phase"] for memory in found["plan"]["memory_bytes"]}
    status, found = check(recipe(**dad(folder, teacher_model_name_or_path=str(folder / "other"))))
    assert status == 2 and "teacher: Student and teacher need the same tokenizer" in messages(found)
    status, found = check(recipe(**dad(folder, teacher_model_name_or_path=None)))
    assert status == 2 and "teacher: `alpha=0.5` needs a teacher" in messages(found)
    status, found = check(recipe(**dad(folder, context_length=5000)))
    assert status == 2 and "none of the first 10 documents has the 5008 tokens" in messages(found)


def served(folder, address, **changes):
    own = {"teacher_model_name_or_path": None, "teacher_server_base_url": address, "teacher_top_k": 4}
    return dad(folder, **{**own, **changes})


def test_a_served_teacher_is_asked_and_its_labels_are_planned(check, recipe, folder, httpserver):
    teacher = TeacherServer(
        httpserver, tiny_model(vocab_size=VOCAB_SIZE + 8), AutoTokenizer.from_pretrained(folder / "model")
    )
    status, found = check(recipe(**served(folder, teacher.url)))
    assert (status, messages(found), found["warnings"]) == (0, "", [])
    assert not {phase["phase"] for phase in found["plan"]["memory_bytes"] if phase["phase"].startswith("soft labels")}
    _, here = check(recipe(**dad(folder, teacher_top_k=4)))
    assert found["plan"]["disk_bytes"]["soft labels"] == here["plan"]["disk_bytes"]["soft labels"] > 0
    read, read_here = ([phase["label_tokens"] for phase in of["plan"]["phases"]] for of in (found, here))
    assert read == read_here and all(read)
    status, found = check(recipe(**served(folder, teacher.url, teacher_model_name_or_path="other")))
    assert status == 2 and "teacher: The teacher's server at" in messages(found) and "serve 'other'" in messages(found)
    teacher.served = [{"id": "teacher", "max_model_len": 40}]
    status, found = check(recipe(**served(folder, teacher.url)))
    assert status == 2 and "the teacher has 39 positions" in messages(found)
    status, found = check(recipe(**served(folder, f"http://127.0.0.1:{free_port()}")))
    assert status == 0 and "does not answer from here" in messages(found, "warnings")


def test_several_teachers_are_each_looked_at(check, recipe, folder, tmp_path):
    rows = [{"text": "Once. " * (20 + i), "teacher": ("one", "two")[i % 2]} for i in range(10)]
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_model(vocab_size=VOCAB_SIZE + 8, hidden_size=64).save_pretrained(tmp_path / "large")
    byte_tokenizer().save_pretrained(tmp_path / "large")
    own = {"dataset_name": str(tmp_path / "named.jsonl"), "teacher_model_name_or_path": None, "teacher_top_k": 4}

    def several(teachers, **changes):
        return check(recipe(**dad(folder, **{**own, "teachers": teachers, **changes})))

    teachers = {"one": str(folder / "model"), "two": str(tmp_path / "large")}
    for changes in ({}, {"text_template": "{{ text }}"}):
        status, found = several(teachers, **changes)
        assert (status, messages(found)) == (0, "")
    planned = {memory["phase"]: memory for memory in found["plan"]["memory_bytes"]}["soft labels 1"]["teacher"]
    _, alone = check(recipe(**dad(folder, teacher_top_k=4, teacher_model_name_or_path=teachers["two"])))
    assert planned == {memory["phase"]: memory for memory in alone["plan"]["memory_bytes"]}["soft labels 1"]["teacher"]
    status, found = several({"one": str(folder / "model"), "too": str(folder / "other")})
    assert status == 2 and "data: Row 1 of the training dataset names the teacher 'two'" in messages(found)
    assert "teacher: Student and teacher need the same tokenizer" in messages(found)
    status, found = several({"one": str(folder / "model"), "two": str(folder / "nowhere")})
    assert status == 2 and f"`teachers: {{two: {folder / 'nowhere'}}}` cannot be read" in messages(found)


def test_memory_is_planned_for_the_teacher_as_it_is_loaded(check, recipe, folder):
    def labelling(**kwargs):
        status, found = check(recipe(**dad(folder, teacher_model_init_kwargs=kwargs or None)))
        assert status == 0, messages(found)
        phases = {memory["phase"]: memory for memory in found["plan"]["memory_bytes"]}
        return phases.get("soft labels 1", {}).get("teacher"), found["plan"]["disk_bytes"]["soft labels"]

    whole, labels = labelling()
    packed, _ = labelling(quantization_config={"load_in_4bit": True})
    assert 0 < packed < whole
    assert labelling(device_map="cpu") == (None, labels)


def test_the_output_of_frozen_layers_is_planned_where_it_is_kept(check, recipe, folder, monkeypatch):
    frozen = {"trainable_modules": ["model.layers.1", "model.norm"], "num_train_epochs": 2}

    def kept(**changes):
        status, found = check(recipe(**dad(folder, **changes)))
        assert status == 0, messages(found)
        return found["plan"]["disk_bytes"].get("frozen layers' output"), found

    size, found = kept(**frozen)
    rows, rolled_out = found["plan"]["data"]["rows"], sum(phase["rollout_tokens"] for phase in found["plan"]["phases"])
    assert size == (rows * (32 + 8) + rolled_out) * 32 * 4
    for changes in ({}, {**frozen, "cache_trunk": False}, {**frozen, "num_iterations": 1, "num_train_epochs": 1}):
        assert kept(**changes)[0] is None
    monkeypatch.setattr("trl_exbias.planning.look.free_bytes", lambda folder: 2 * size - 1)
    size, found = kept(**frozen)
    assert size is None and "every step will run the frozen layers: their output would take" in str(found["warnings"])


def test_a_mixture_of_experts_beside_a_teacher_is_told_what_to_set(check, recipe, folder, tmp_path):
    family("qwen3_moe").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    options = dad(folder, model_name_or_path=str(tmp_path / "model"))
    status, found = check(recipe(**options))
    assert status == 2 and "set `router_aux_loss_coef=0` (it is 0.001)" in messages(found)
    _, found = check(recipe(**options, router_aux_loss_coef=0.0))
    assert "router_aux_loss_coef" not in messages(found)
