"""Embedding distances by models that are built here: a bag of words, whose cosines one can work out, and a transformer."""

import csv
import math

import pytest

from trl_exbias.evaluation.embeddings import embedding_distance, plot_embedding_distance
from trl_exbias.evaluation.figures import Figure, paired_difference

from ..tiny import byte_tokenizer


pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def bag_of_words():
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import BoW

    return SentenceTransformer(modules=[BoW(vocab=["cat", "dog", "sun", "moon"])], device="cpu")


def test_distances_of_counted_words(bag_of_words):
    figure = embedding_distance(
        {"same": "cat dog", "longer": "cat dog cat dog", "half": "cat sun", "other": "moon"},
        {"same": "dog cat", "longer": ["cat dog"], "half": "cat dog", "other": "cat dog", "absent": "sun"},
        bag_of_words,
    )
    assert figure.per_prompt == pytest.approx({"same": 0, "longer": 0, "half": 0.5, "other": 1}, abs=1e-6)
    assert (figure.n, figure.missing, figure.higher_is_better) == (4, 1, False)


def test_the_nearest_reference_counts(bag_of_words):
    figure = embedding_distance({"a": "cat cat dog"}, {"a": ["sun", "cat", "moon dog"]}, bag_of_words)
    assert figure.mean == pytest.approx(1 - 2 / math.sqrt(5))


def test_a_text_without_an_embedding_is_missing(bag_of_words):
    figure = embedding_distance({"a": "nothing known", "b": "cat"}, {"a": "cat", "b": "cat"}, bag_of_words)
    assert figure.per_prompt == {"b": pytest.approx(0, abs=1e-6)} and figure.missing == 1


def test_many_responses_to_one_query(bag_of_words):
    predictions = {f"query/{i}": text for i, text in enumerate(["cat", "dog", "cat dog"])}
    figure = embedding_distance(predictions, dict.fromkeys(predictions, "cat"), bag_of_words, batch_size=1)
    assert list(figure.per_prompt.values()) == pytest.approx([0, 1, 1 - 1 / math.sqrt(2)], abs=1e-6)


@pytest.fixture(scope="module")
def transformer_folder(tmp_path_factory):
    """A folder such as the hub has: a tiny BERT, mean pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 32
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes)).save_pretrained(
        folder / "bert"
    )
    tokenizer.save_pretrained(folder / "bert")
    body = Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[body, Pooling(32)], device="cpu").save_pretrained(str(folder / "model"))
    return str(folder / "model")


def test_a_model_is_loaded_by_name_and_named_in_the_settings(transformer_folder, bag_of_words):
    texts = {"a": "The dog sleeps.", "b": "The fox goes out at night, and comes back in the morning."}
    other = {"a": "Nobody knows why.", "b": texts["b"]}
    same = embedding_distance(texts, texts, transformer_folder, batch_size=1)
    assert same.mean == pytest.approx(0, abs=1e-6)
    figure = embedding_distance(other, texts, transformer_folder)
    assert figure.per_prompt["a"] > 1e-3 and figure.per_prompt["b"] == pytest.approx(0, abs=1e-6)
    assert figure.settings["model"] == transformer_folder and figure.settings["max_seq_length"] == 32
    assert paired_difference(figure, same).mean > 0
    with pytest.raises(ValueError, match="`model`"):
        paired_difference(figure, embedding_distance(texts, texts, bag_of_words))


def test_a_prediction_without_a_reference_is_refused(bag_of_words):
    with pytest.raises(ValueError, match="no reference for 1 of 2 predictions, such as 'b'"):
        embedding_distance({"a": "cat", "b": "cat"}, {"a": "cat"}, bag_of_words)


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"pip install trl-exbias\[embeddings\]"):
        embedding_distance({"a": "cat"}, {"a": "cat"}, "a model")


def figure(values: list[float], **settings) -> Figure:
    return Figure.over_prompts("embedding_distance", {str(i): v for i, v in enumerate(values)}, settings=settings)


def test_violins_and_the_csv_behind_them(tmp_path):
    pytest.importorskip("matplotlib")
    figures = {"SFT": figure([0.1, 0.4, 0.35, 0.9]), "BASH": figure([0.2, 0.1, 0.3]), "always the same": figure([0.5])}
    table = plot_embedding_distance(figures, tmp_path / "violins.png", "train example 1")
    assert (tmp_path / "violins.png").read_bytes().startswith(b"\x89PNG")
    with open(table, newline="") as file:
        read = [(row["model"], row["prompt"], float(row["distance"])) for row in csv.DictReader(file)]
    assert table == tmp_path / "violins.csv"
    assert read == [(name, prompt, value) for name, f in figures.items() for prompt, value in f.per_prompt.items()]


def test_what_cannot_be_drawn_together_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="no distance to draw of empty"):
        plot_embedding_distance({"full": figure([0.1]), "empty": figure([])}, tmp_path / "violins.png")
    with pytest.raises(ValueError, match="unlike settings"):
        plot_embedding_distance(
            {"one": figure([0.1], model="a"), "other": figure([0.1], model="b")}, tmp_path / "violins.png"
        )
    assert not list(tmp_path.iterdir())
