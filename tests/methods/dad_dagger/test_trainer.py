"""DaD-DAgger against Algorithm 1, its baselines against their own equations."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from trl_exbias import DaDDaggerConfig, DaDDaggerTrainer
from trl_exbias.run.rollout_store import RolloutStore

from ...families import family
from ...loop.runs import config, logged, trainer, weights
from ...marks import needs_bitsandbytes
from ...reference import dad_dagger as reference
from ...tiny import VOCAB_SIZE, byte_tokenizer, conversations, plain_pairs, tiny_model


H, T, LR = 8, 4, 1e-2
TEXTS = ["The fox went out on a chilly night.", "He prayed to the moon.", "tiny"]


def documents(texts=TEXTS) -> Dataset:
    return Dataset.from_list([{"text": text} for text in texts])


def make(tmp_path, dataset=None, model=None, teacher=None, eval_dataset=None, callbacks=None, **options):
    options = {
        "context_length": H,
        "rollout_length": T,
        "num_train_epochs": 2,
        "num_iterations": 2,
        "per_device_train_batch_size": 64,
        "learning_rate": LR,
        **options,
    }
    peft_config = options.pop("peft_config", None)
    args = config(DaDDaggerConfig, tmp_path, **options)
    own = args.teacher_model_name_or_path or args.teacher_server_base_url or args.teachers
    if teacher is None and args.alpha < 1 and own is None:
        teacher = tiny_model(seed=7)
    return trainer(
        DaDDaggerTrainer,
        args,
        documents() if dataset is None else dataset,
        model,
        teacher_model=teacher,
        eval_dataset=eval_dataset,
        callbacks=callbacks,
        peft_config=peft_config,
    )


def run(tmp_path, **options):
    resume = options.pop("resume", None)
    made = make(tmp_path, **options)
    made.train(resume_from_checkpoint=resume)
    return made


def cut():
    tokenizer = byte_tokenizer()
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in TEXTS]
    return reference.trajectories(ids, H, T, T)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("cache", [True, False], ids=["cached", "on-the-fly"])
def test_the_whole_algorithm_equals_the_reference(tmp_path, alpha, cache):
    """Sets after each iteration, every loss, the final weights."""
    done = run(tmp_path, alpha=alpha, num_iterations=3, cache_teacher=cache)
    student, teacher = tiny_model(), tiny_model(seed=7) if alpha < 1 else None
    sizes, losses = reference.train(student, teacher, cut(), H, alpha, 3, 2, LR, done.args.seed)
    assert sizes == [len(cut()) * n for n in (T, T + T - 1, T + 2 * (T - 1))]
    assert logged(done, "loss") == pytest.approx(losses, rel=1e-4)
    expected = torch.cat([parameter.detach().flatten() for parameter in student.parameters()])
    # As a whole: Adam makes a step of full size of a gradient that is nothing but rounding.
    assert (weights(done) - expected).norm() < 1e-4 * expected.norm()


def test_rollouts_carry_the_datas_labels_from_the_second_position_on(tmp_path):
    run(tmp_path, alpha=1.0)
    rows = RolloutStore(tmp_path / "rollouts" / "iteration-2").read().to_list()
    assert len(rows) == len(cut())
    for row, trajectory in zip(sorted(rows, key=lambda row: row["example_id"]), cut(), strict=True):
        assert row["labels"] == [-100, *trajectory[H + 1 :]]
        assert len(row["input_ids"]) == T


@pytest.mark.parametrize(("aggregate", "used"), [("all", [[], [2], [2, 3], [2, 3, 4]]), ("last", [[], [2], [3], [4]])])
def test_aggregation_policies(tmp_path, aggregate, used):
    made = make(tmp_path, alpha=1.0, num_iterations=4, aggregate=aggregate)
    assert [made.iterations_in_use(i) for i in (1, 2, 3, 4)] == used


def test_the_last_two_of_four(tmp_path):
    made = make(tmp_path, alpha=1.0, num_iterations=4, aggregate="2")
    assert made.iterations_in_use(4) == [3, 4]


def test_four_branches_cost_their_tokens_and_one_context(tmp_path):
    """128 + 4 · 10 tokens, not 4 · 138 (Pozzi 2025's lengths)."""
    text = ["x" * (128 + 10)]
    made = make(
        tmp_path,
        dataset=documents(text),
        alpha=1.0,
        num_iterations=4,
        num_train_epochs=1,
        context_length=128,
        rollout_length=10,
    )
    made.train()
    tokens = logged(made, "num_tokens")
    assert tokens[-1] - tokens[-2] == 128 - 1 + 4 * 10


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


@pytest.mark.parametrize("options", [{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 32}, {}])
def test_the_loss_is_one_mean_of_the_global_batch(tmp_path, options):
    done = run(tmp_path, num_train_epochs=1, **options)
    _, losses = reference.train(tiny_model(), tiny_model(seed=7), cut(), H, 0.5, 2, 1, LR, 42)
    assert logged(done, "loss") == pytest.approx(losses, rel=1e-4)


def test_alpha_1_loads_no_teacher(tmp_path, monkeypatch):
    from trl_exbias.methods.dad_dagger.teacher import Teacher

    monkeypatch.setattr(Teacher, "loaded", lambda self: pytest.fail("the teacher was loaded"))
    done = run(tmp_path, alpha=1.0, teacher="no/such/model")
    assert done.teacher is None
    assert not (tmp_path / "soft-labels").exists()


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


def test_lora_students_and_partly_trained_students(tmp_path):
    frozen = run(tmp_path / "a", trainable_modules=["model.layers.1", "model.norm"])
    start = tiny_model().state_dict()
    changed = {name for name, value in frozen.model.state_dict().items() if not torch.equal(value, start[name])}
    assert changed and all(name.startswith(("model.layers.1.", "model.norm.")) for name in changed)
    lora = run(tmp_path / "b", peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    assert logged(lora, "loss")[-1] < logged(lora, "loss")[0]


@pytest.mark.parametrize("architecture", ["gemma2", "gpt_neo", "bloom"])
def test_other_architectures_distil_across_families(tmp_path, architecture):
    """Soft-capped logits, local attention, ALiBi (separate rows): all with a teacher of another shape."""
    done = run(tmp_path, model=tiny_model(architecture), num_iterations=2, num_train_epochs=1)
    student, teacher = tiny_model(architecture), tiny_model(seed=7)
    pairs = reference.gold_pairs(cut(), H, teacher)
    assert logged(done, "loss")[0] == pytest.approx(reference.objective(student, pairs, 0.5).item(), rel=1e-4)


@pytest.mark.parametrize("dataset", [plain_pairs(6), conversations(6)], ids=["pairs", "conversations"])
def test_prompt_completion_data_are_cut_from_the_response(tmp_path, dataset):
    done = run(tmp_path, dataset=dataset, alpha=1.0, num_train_epochs=1)
    sft_rows = {}
    for row in done.train_dataset:
        split = row["context_length"]
        assert 1 <= len(row["input_ids"]) - split <= T
        sft_rows.setdefault(row["document"], []).extend(row["input_ids"][split:])
    for index, tokens in sft_rows.items():
        text = byte_tokenizer().decode(tokens, skip_special_tokens=True).strip()
        completion = dataset[index]["completion"]
        assert text == (completion if isinstance(completion, str) else completion[0]["content"]).strip()


# Early stopping within an iteration


class Evaluations(TrainerCallback):
    """Replaces the measured loss by a script, to steer what is stopped when."""

    def __init__(self, losses):
        self.losses = list(losses)
        self.weights = {}

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if "eval_loss" in logs:
            logs["eval_loss"] = state.log_history[-1]["eval_loss"] = self.losses.pop(0)
            self.weights[state.global_step] = torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def stopped_run(tmp_path, losses, **options):
    script = Evaluations(losses)
    done = run(
        tmp_path,
        alpha=1.0,
        num_train_epochs=4,
        eval_dataset=documents(TEXTS[:1]),
        callbacks=[script],
        **options,
    )
    return done, script


def test_an_iteration_ends_where_its_evaluation_does_not_improve_and_its_best_weights_go_on(tmp_path):
    # Iteration 1: best at step 2, over at step 3. Iteration 2: runs all of its four epochs, best at the end.
    done, script = stopped_run(tmp_path, [3.0, 2.0, 2.5, 2.0, 1.9, 1.8, 1.7])
    assert done.state.global_step == 3 + 4
    assert [phase["step"] for phase in done.state.log_history if "seconds/joint" in phase] == [3, 7]
    from trl_exbias.core.fingerprint import weights_fingerprint

    policy = tiny_model()
    torch.nn.utils.vector_to_parameters(script.weights[2], policy.parameters())
    manifest = json.loads((tmp_path / "rollouts" / "iteration-2" / "manifest.json").read_text())
    assert manifest["header"]["policy"] == weights_fingerprint(policy), "the best weights rolled out"


def test_the_last_iterations_best_weights_are_the_models(tmp_path):
    done, script = stopped_run(tmp_path, [3.0, 3.1, 2.0, 2.1])
    assert done.state.global_step == 4
    assert torch.equal(weights(done), script.weights[3])


def test_a_planned_schedule_moves_on_to_the_next_iteration(tmp_path):
    done, _ = stopped_run(tmp_path, [1.0, 2.0, 2.0, 1.9, 1.8, 1.7], lr_scheduler_type="linear", learning_rate=8e-3)
    # Steps 3 and 4 of 8 planned ones are left out; the logged rate is that of the update just done.
    assert logged(done, "learning_rate") == pytest.approx([8e-3, 7e-3, 4e-3, 3e-3, 2e-3, 1e-3])


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_a_run_with_early_stopping_resumes_bit_equal(tmp_path, step):
    losses = [3.0, 2.0, 2.5, 2.0, 1.9, 2.1]
    whole, _ = stopped_run(tmp_path / "whole", losses, save_strategy="epoch")
    import shutil

    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for path in (tmp_path / "part").glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)
    resumed, _ = stopped_run(tmp_path / "part", losses[step:], save_strategy="epoch", resume=True)
    assert resumed.state.global_step == whole.state.global_step == 6
    assert torch.equal(weights(resumed), weights(whole))


def test_an_sft_phase_has_no_best_weights_of_its_own(tmp_path):
    """Its evaluations are logged as well, but it is not an iteration."""
    done, _ = stopped_run(tmp_path, [1.0, 2.0, 3.0, 3.5, 2.0, 2.5], sft_epochs=2)
    # 2 SFT epochs; iteration 1 is over after its second evaluation, which is not better, and so is iteration 2.
    assert done.state.global_step == 2 + 2 + 2


def test_several_evaluation_sets_need_a_metric(tmp_path):
    sets = {"a": documents(TEXTS[:1]), "b": documents(TEXTS[1:2])}
    with pytest.raises(ValueError, match=r"which of the evaluation sets counts \(a, b\)"):
        make(tmp_path / "a", alpha=1.0, eval_dataset=sets)
    done = run(tmp_path / "b", alpha=1.0, eval_dataset=sets, metric_for_best_model="b_loss")
    assert list((tmp_path / "b" / "iteration-best").glob("step-*"))
    assert logged(done, "eval_b_loss")


@pytest.mark.parametrize("cache", [True, False])
def test_bf16_is_close_to_fp32(tmp_path, cache):
    half = run(tmp_path / "a", bf16=True, cache_teacher=cache)
    single = run(tmp_path / "b", cache_teacher=cache)
    assert logged(half, "loss") == pytest.approx(logged(single, "loss"), rel=2e-2)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"`alpha` must be in \[0, 1\], got 1.5"),
        ({"rollout_length": 0}, "`rollout_length` must be at least 1, got 0"),
        ({"stride": 0}, "`stride` must be at least 1"),
        ({"aggregate": "some"}, "`aggregate` must be 'all', 'last' or a number"),
        ({"kd_temperature": 0}, "`kd_temperature` must be above 0"),
        ({"teacher_top_k": 5, "cache_teacher": False}, "`teacher_top_k` is for labels on disk"),
        ({"rollout_weight": 2.0}, "`sft_weight` and `rollout_weight` must be 1"),
        ({"loss_type": "dft"}, "`loss_type` must be 'nll'"),
        ({"divergence": "js"}, "`divergence` must be one of forward_kl, reverse_kl, jensen_shannon, got 'js'"),
        ({"divergence": "reverse_kl", "alpha": 1.0}, "`divergence='reverse_kl'` is of soft labels, and `alpha=1` has"),
        ({"jsd_beta": 0.2}, "`jsd_beta=0.2` is of `divergence='jensen_shannon'`"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(DaDDaggerConfig, tmp_path, **options)


def test_a_missing_teacher_is_named_before_the_model_is_loaded(tmp_path):
    args = config(DaDDaggerConfig, tmp_path)
    with pytest.raises(ValueError, match="`alpha=0.5` needs a teacher"):
        DaDDaggerTrainer(model=tiny_model(), args=args, train_dataset=documents(), processing_class=byte_tokenizer())


def test_another_tokenizer_is_refused(tmp_path):
    teacher = tiny_model(seed=7)
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match="need the same tokenizer.*'<extra>'"):
        make(tmp_path / "run", teacher=str(tmp_path / "teacher"))


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


@pytest.mark.skipif(
    not torch._C._dispatch_has_computed_kernel_for_dispatch_key("aten::_grouped_mm", "CPU"),
    reason="this release of torch has no product of experts on a CPU",
)
def test_a_mixture_of_experts_names_the_setting_that_makes_it_train(tmp_path):
    with pytest.raises(ValueError, match=r"`router_aux_loss_coef=0` \(it is 0.001\), or `alpha=1`"):
        make(tmp_path, model=family("qwen3_moe"))
    done = run(tmp_path, model=family("qwen3_moe"), router_aux_loss_coef=0.0, num_iterations=1, num_train_epochs=1)
    assert logged(done, "loss/soft")


def test_a_teacher_with_fewer_logits_than_tokens_is_refused(tmp_path):
    with pytest.raises(ValueError, match="made for another vocabulary"):
        make(tmp_path, teacher=tiny_model(seed=7, vocab_size=VOCAB_SIZE - 5))


def test_k_above_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"`teacher_top_k={VOCAB_SIZE + 1}` is above the {VOCAB_SIZE} tokens"):
        make(tmp_path, teacher_top_k=VOCAB_SIZE + 1)


def test_short_documents_are_counted_and_all_short_is_an_error(tmp_path, caplog):
    make(tmp_path / "a", alpha=1.0)
    assert "1 of 3 documents are shorter than a trajectory (12 tokens): dropped" in caplog.text
    with pytest.raises(ValueError, match="No document has the 12 tokens of a trajectory"):
        make(tmp_path / "b", dataset=documents(["tiny"]), alpha=1.0)


def test_a_trajectory_longer_than_the_positions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="A trajectory has 304 tokens .* the model has 256 positions"):
        make(tmp_path, model=tiny_model("gpt2"), context_length=300, alpha=1.0)


def test_modules_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"names no module of this model: 'transformer.h.1'"):
        make(tmp_path, trainable_modules=["transformer.h.1"], alpha=1.0)


def test_trainable_modules_and_lora_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="exclude each other"):
        make(tmp_path, trainable_modules=["model.norm"], peft_config=LoraConfig(r=2), alpha=1.0)


# The named baselines, each against its own equation


def test_plain_fine_tuning_is_trls_sft_on_the_trajectories(tmp_path):
    """n = 1, α = 1: the labels of the horizons, nothing else."""
    from trl import SFTConfig, SFTTrainer

    from ...loop.runs import DEFAULTS

    done = run(tmp_path / "a", alpha=1.0, num_iterations=1, num_train_epochs=3)
    rows = Dataset.from_list(
        [{"input_ids": row, "labels": [-100] * H + row[H:]} for row in cut()],
    )
    settings = dict(DEFAULTS)
    settings |= {"learning_rate": LR, "per_device_train_batch_size": 64, "lr_scheduler_type": "constant"}
    args = SFTConfig(str(tmp_path / "b"), **settings, num_train_epochs=3)
    sft = SFTTrainer(model=tiny_model(), args=args, train_dataset=rows, processing_class=byte_tokenizer())
    sft.train()
    assert logged(done, "loss") == pytest.approx(logged(sft, "loss"), rel=1e-5)
    assert (weights(done) - weights(sft)).norm() < 1e-4 * weights(sft).norm()


def test_next_token_distillation_sees_the_datas_contexts_alone(tmp_path):
    """n = 1 (Hinton et al.): α NLL + (1 − α) KD on true prefixes; no rollouts are made."""
    done = run(tmp_path, alpha=0.25, num_iterations=1, num_train_epochs=1)
    pairs = reference.gold_pairs(cut(), H, tiny_model(seed=7))
    assert logged(done, "loss") == [pytest.approx(reference.objective(tiny_model(), pairs, 0.25).item(), rel=1e-4)]
    assert not (tmp_path / "rollouts").exists()


def test_imitkd_has_no_gradient_from_the_datas_labels(tmp_path):
    """α = 0: other labels on the same contexts, the same weights."""
    first = run(tmp_path / "a", alpha=0.0, num_iterations=1)
    made = make(tmp_path / "b", alpha=0.0, num_iterations=1)
    other = [[-100 if label == -100 else (label + 1) % 200 for label in row] for row in made.train_dataset["labels"]]
    made.train_dataset = made.train_dataset.remove_columns("labels").add_column("labels", other)
    made.train()
    assert torch.equal(weights(first), weights(made))


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        ((1, 2), {}),
        ((1, 2), {"teacher_top_k": 4}),
        ((1, 2), {"cache_teacher": False}),
        ((2,), {"divergence": "reverse_kl"}),
        ((2,), {"divergence": "jensen_shannon", "jsd_beta": 0.3}),
        ((2,), {"gate": "relative"}),
        ((2,), {"gate": "threshold", "divergence": "reverse_kl", "cache_teacher": False}),
    ],
    ids=["hidden", "top", "fly", "reverse", "js", "gated", "gated-fly"],
)
def test_a_distilling_run_resumed_from_any_checkpoint_is_bit_equal(tmp_path, steps, options):
    import shutil

    whole = run(
        tmp_path / "whole", num_iterations=3, num_train_epochs=1, save_strategy="steps", save_steps=1, **options
    )
    for step in steps:
        shutil.copytree(tmp_path / "whole", tmp_path / f"from-{step}")
        # Step n is iteration n's only one: the next one's rollouts are made again.
        for path in [
            *(tmp_path / f"from-{step}").glob("checkpoint-*"),
            *(tmp_path / f"from-{step}").glob("rollouts/*"),
        ]:
            if int(path.name.split("-")[1]) > step:
                shutil.rmtree(path)
        resumed = run(
            tmp_path / f"from-{step}",
            num_iterations=3,
            num_train_epochs=1,
            save_strategy="steps",
            save_steps=1,
            resume=True,
            **options,
        )
        assert torch.equal(weights(resumed), weights(whole))
