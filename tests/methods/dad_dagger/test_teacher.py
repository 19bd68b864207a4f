"""The teacher: its labels, as they are kept and as they are learnt, and where it is loaded."""

import pytest
import torch
from peft import LoraConfig

from trl_exbias.run.rollout_store import RolloutStore

from ...loop.runs import logged, weights
from ...marks import needs_bitsandbytes
from ...reference import dad_dagger as reference
from ...tiny import VOCAB_SIZE, tiny_model
from .runs import H, T, cut, make, run


def test_a_teacher_equal_to_the_student_teaches_nothing(tmp_path):
    model = tiny_model()
    done = run(tmp_path, model=model, teacher=tiny_model(), alpha=0.0, num_iterations=1, num_train_epochs=1)
    assert logged(done, "kl") == [pytest.approx(0, abs=1e-5)]
    assert logged(done, "grad_norm") == [pytest.approx(0, abs=1e-5)]


def test_the_vocabulary_as_top_k_is_the_whole_distribution(tmp_path):
    dense = run(tmp_path / "dense")
    top = run(tmp_path / "top", teacher_top_k=VOCAB_SIZE)
    assert logged(top, "loss") == pytest.approx(logged(dense, "loss"), rel=1e-5)
    # As a whole: Adam makes a step of full size of a gradient that is nothing but rounding.
    assert (weights(top) - weights(dense)).norm() < 1e-4 * weights(dense).norm()


def test_a_small_top_k_trains_on_the_bucketed_distribution(tmp_path):
    done = run(tmp_path, teacher_top_k=3, alpha=0.0, num_iterations=1, num_train_epochs=1)
    from ...reference.distillation import bucketed_cross_entropy

    student = tiny_model()
    pairs = reference.gold_pairs(cut(), H, tiny_model(seed=7))
    losses = [
        bucketed_cross_entropy(student(input_ids=torch.tensor([pair.context])).logits[0, -1], pair.soft, 3)
        for pair in pairs
    ]
    assert logged(done, "loss") == [pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)]


@pytest.mark.parametrize("divergence", ["reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize("options", [{}, {"cache_teacher": False}, {"teacher_top_k": 3}], ids=["kept", "live", "top-k"])
def test_another_divergence_of_the_soft_labels(tmp_path, divergence, options):
    done = run(tmp_path, divergence=divergence, alpha=0.25, num_iterations=1, num_train_epochs=1, **options)
    from ...reference.distillation import bucketed
    from ...reference.distillation import divergence as reference_divergence

    student = tiny_model()
    soft, hard = [], []
    for pair in reference.gold_pairs(cut(), H, tiny_model(seed=7)):
        q = pair.soft
        p = student(input_ids=torch.tensor([pair.context])).logits[0, -1].double().softmax(-1)
        hard.append(-p[pair.label].log())
        if "teacher_top_k" in options:
            top = q.topk(3).indices.tolist()
            q, p = bucketed(q, top), bucketed(p, top)
        soft.append(reference_divergence(q, p, divergence))
    soft, hard = torch.stack(soft).mean().item(), torch.stack(hard).mean().item()
    assert logged(done, "loss") == [pytest.approx(0.25 * hard + 0.75 * soft, rel=1e-4)]
    assert logged(done, "loss/soft") == [pytest.approx(soft, rel=1e-4)]


def test_no_token_is_scored_twice(tmp_path):
    """Within a run every branch once; a second run with the same teacher, none of the data's."""
    shared = str(tmp_path / "shared")
    first = run(tmp_path / "a", num_iterations=3, soft_label_dir=shared)
    assert logged(first, "teacher/scored") == [len(cut())] * 3
    second = run(tmp_path / "b", num_iterations=1, alpha=0.25, soft_label_dir=shared)
    assert logged(second, "teacher/scored") == [0]
    other = run(tmp_path / "c", num_iterations=1, teacher=tiny_model(seed=8), soft_label_dir=shared)
    assert logged(other, "teacher/scored") == [len(cut())], "another teacher's labels are other labels"


def test_labels_on_disk_are_the_same_in_many_shards_and_all_are_counted(tmp_path, monkeypatch):
    """Long rows come in small shards, whose labels fit into memory; the count is of the tokens that the teacher read."""
    whole = run(tmp_path / "whole", num_iterations=2)
    monkeypatch.setattr("trl_exbias.methods.dad_dagger.filling._SHARD_POSITIONS", 3 * T + 1)
    parts = run(tmp_path / "parts", num_iterations=2)
    written = [len([*(tmp_path / name).glob("soft-labels/*/shard-*")]) for name in ("whole", "parts")]
    # Gold rows have T labels, rollouts T - 1: in 13, there is room for three of the ones and for four of the others.
    assert written == [2, -(-len(cut()) // 3) + -(-len(cut()) // 4)]
    assert logged(parts, "loss") == logged(whole, "loss")
    assert logged(parts, "teacher/num_tokens") == [len(cut()) * (H + T)] * 2


# Where it is


def test_alpha_1_loads_no_teacher(tmp_path, monkeypatch):
    from trl_exbias.methods.dad_dagger.teacher import Teacher

    monkeypatch.setattr(Teacher, "loaded", lambda self: pytest.fail("the teacher was loaded"))
    done = run(tmp_path, alpha=1.0, teacher="no/such/model")
    assert done.teacher is None
    assert not (tmp_path / "soft-labels").exists()


def test_the_teacher_is_neither_trained_nor_saved_nor_changed(tmp_path):
    teacher = tiny_model(seed=7).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    done = run(tmp_path, teacher=teacher, cache_teacher=False, save_strategy="epoch")
    assert teacher.training, "the caller's object is as it was"
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    optimized = {id(parameter) for group in done.optimizer.param_groups for parameter in group["params"]}
    assert optimized.isdisjoint({id(parameter) for parameter in teacher.parameters()})


@pytest.mark.parametrize("save", ["model", "adapter"])
def test_a_teacher_by_path(tmp_path, save):
    teacher = tiny_model(seed=7)
    teacher.save_pretrained(tmp_path / "teacher")
    path = tmp_path / "teacher"
    if save == "adapter":
        from peft import get_peft_model

        adapted = get_peft_model(teacher, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        adapted.peft_config["default"].base_model_name_or_path = str(path)
        adapted.save_pretrained(path := tmp_path / "adapter")
        teacher = adapted.merge_and_unload()
    by_path = run(tmp_path / "a", teacher=str(path))
    by_object = run(tmp_path / "b", teacher=teacher)
    assert logged(by_path, "loss") == pytest.approx(logged(by_object, "loss"), rel=1e-5)


def test_a_teacher_on_a_device_of_its_own(tmp_path):
    """`device_map` places it, and it stays there."""
    (teacher := tiny_model(seed=7)).save_pretrained(tmp_path / "teacher")
    placed = make(tmp_path / "a", teacher=str(tmp_path / "teacher"), teacher_model_init_kwargs={"device_map": "cpu"})
    placed.teacher.device = torch.device("meta")  # where the student would be; a model that moved there has no weights
    placed.train()
    assert logged(placed, "loss") == logged(run(tmp_path / "b", teacher=teacher), "loss")


@needs_bitsandbytes
@pytest.mark.parametrize(("bits", "cache"), [(4, True), (4, False), (8, True)])
def test_a_quantized_teacher(tmp_path, bits, cache):
    """Its labels are those of the packed weights: others, and near."""
    size = {"hidden_size": 64, "intermediate_size": 128}  # blocks of 64 weights are packed
    tiny_model(seed=7, **size).save_pretrained(tmp_path / "teacher")
    options = {"teacher": str(tmp_path / "teacher"), "num_iterations": 1, "cache_teacher": cache}
    packing = {"device_map": "cpu", "quantization_config": {f"load_in_{bits}bit": True}}
    packed = run(tmp_path / "packed", teacher_model_init_kwargs=packing, **options)
    whole = run(tmp_path / "whole", **options)
    assert logged(packed, "kl") != logged(whole, "kl")
    assert logged(packed, "kl") == pytest.approx(logged(whole, "kl"), rel=0.1)


# Tokens that student and teacher have in common


def test_padded_embeddings_of_the_same_tokens_are_sliced(tmp_path, caplog):
    done = run(tmp_path, teacher=tiny_model(seed=7, vocab_size=VOCAB_SIZE + 5), num_iterations=1)
    assert "the padding beyond" in caplog.text
    assert done.shared_vocab == VOCAB_SIZE


@pytest.mark.parametrize("cache", [True, False])
def test_a_student_padded_beyond_its_teacher_draws_what_they_share(tmp_path, cache):
    """Rows of its embeddings that stand for no token, but are as probable as any."""
    student = tiny_model(vocab_size=VOCAB_SIZE + 200)
    made = make(tmp_path, model=student, teacher=tiny_model(seed=7), cache_teacher=cache)
    excluded = made.sampling_options(0).excluded_token_ids
    assert excluded == tuple(range(VOCAB_SIZE, VOCAB_SIZE + 200))
    made.train()
    drawn = [token for row in RolloutStore(tmp_path / "rollouts" / "iteration-2").read() for token in row["input_ids"]]
    assert drawn and max(drawn) < VOCAB_SIZE


def test_without_a_teacher_every_token_may_be_drawn(tmp_path):
    made = make(tmp_path, model=tiny_model(vocab_size=VOCAB_SIZE + 200), alpha=1.0)
    assert made.sampling_options(0).excluded_token_ids == ()
