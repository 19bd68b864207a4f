import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from trl_exbias.core.fingerprint import rows_fingerprint, weights_fingerprint

from ..tiny import tiny_model


def test_equal_weights_have_equal_fingerprints():
    assert weights_fingerprint(tiny_model()) == weights_fingerprint(tiny_model())


def test_the_smallest_change_of_any_weight_shows():
    model = tiny_model()
    seen = {weights_fingerprint(model)}
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        for place in (0, flat.numel() // 2, flat.numel() - 1):
            old = flat[place].clone()
            flat[place] = torch.nextafter(old, old + 1)
            seen.add(weights_fingerprint(model))
            flat[place] = old
    assert len(seen) == 1 + 3 * len(list(model.parameters()))


def test_swapped_weights_show():
    model = tiny_model()
    before = weights_fingerprint(model)
    weight = model.model.layers[0].mlp.up_proj.weight.data
    weight[[0, 1]] = weight[[1, 0]]
    assert weights_fingerprint(model) != before


def test_only_trainable_weights_count():
    """A LoRA policy is its adapter: the frozen base needs no reading."""
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    before = weights_fingerprint(model)
    model.get_base_model().model.embed_tokens.weight.data += 1
    assert weights_fingerprint(model) == before


def test_half_precision_weights_have_fingerprints():
    assert weights_fingerprint(tiny_model().bfloat16()) != weights_fingerprint(tiny_model().half())


def test_rows_are_told_apart_by_content_order_and_labels():
    rows = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}]
    others = [
        rows[::-1],
        rows[:1],
        [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [3, 4], "labels": [3, 4]}],
        [{**rows[0], "labels": [1, 2, 3]}, rows[1]],
    ]
    fingerprints = {rows_fingerprint(Dataset.from_list(part)) for part in [rows, *others]}
    assert len(fingerprints) == 5
    assert rows_fingerprint(Dataset.from_list(rows)) == rows_fingerprint(Dataset.from_list([*rows]))


def test_rows_of_equal_length_are_read_like_any_others():
    same = [{"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [3, 4], "labels": [3, 4]}]
    assert len(rows_fingerprint(Dataset.from_list(same))) == 32
