"""The card of a run, read back as the hub reads it."""

import re
from importlib import metadata

import pytest
import yaml
from datasets import Dataset, DatasetInfo
from huggingface_hub import ModelCard
from peft import LoraConfig

from trl_exbias import BASHConfig, BASHTrainer, RACConfig, RACTrainer
from trl_exbias.evaluation import ExposureBiasCallback
from trl_exbias.hub.markdown import fence, hub_link, plain
from trl_exbias.hub.model_card import recipe

from ..loop.runs import config, logged, trainer
from ..tiny import conversations, tiny_model


HOSTILE = "evil {{ 7 * 7 }} {% raw %} <script>alert(1)</script>\n---\n# Heading | `code` ``` [x](http://y)"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run of BASH that measured exposure bias."""
    folder = tmp_path_factory.mktemp("runs") / "bash-run"
    args = config(BASHConfig, folder, beta=0.5, num_iterations=2, hub_token="hf_secret", learning_rate=5e-4)
    args.model_init_kwargs = {"token": "hf_secret too", "revision": "main"}
    args.lr_scheduler_kwargs = {"note": "a ``` fence"}
    data = conversations(8)
    revision = {f"hf://datasets/org/data@{'a' * 40}/train.parquet": {"num_bytes": 1, "checksum": None}}
    data = Dataset(data.data, info=DatasetInfo(download_checksums=revision))
    made = trainer(BASHTrainer, args, data)
    made.add_callback(
        ExposureBiasCallback(made, [list(b"The dog sleeps under the table.")], context_length=8, horizon=4, stride=8)
    )
    args.lr_scheduler_kwargs = None
    made.train()
    args.lr_scheduler_kwargs = {"note": "a ``` fence"}
    made.save_model()
    return made


def card(done, **names) -> ModelCard:
    done.create_model_card(**names)
    return ModelCard.load(f"{done.args.output_dir}/README.md")


def test_saving_writes_the_card(done):
    read = ModelCard.load(f"{done.args.output_dir}/README.md")
    assert read.data.model_name == "bash-run"
    assert {"bash", "trl-exbias", "generated_from_trainer"} <= set(read.data.tags)
    assert read.text.lstrip().startswith("# bash-run\n")
    assert "**BASH**" in read.text and BASHTrainer._paper["title"] in read.text
    assert BASHTrainer._paper["citation"] in read.text and "@software{vonwerra2020trl" in read.text
    assert f"- trl: {metadata.version('trl')}" in read.text and "- Steps: 6" in read.text
    assert f"- Identity of the tokenized rows: {done.data_fingerprint}" in read.text
    assert f"org/data@{'a' * 40}" in read.text


def test_the_recipe_is_what_differs_from_the_defaults(done):
    block = re.search(r"(`{3,})yaml\n(.*?)\n\1\n", card(done).text, re.DOTALL)
    read = yaml.safe_load(block[2])
    assert read == recipe(done.args)
    assert (read["beta"], read["num_iterations"], read["learning_rate"]) == (0.5, 2, 5e-4)
    assert not {"temperature", "output_dir", "use_cpu", "hub_token", "report_to"} & set(read)
    assert block[1] == "````", "a longer fence than the one inside"


def test_the_gap_table_is_what_the_callback_logged(done):
    rows = [line.split("|")[1:-1] for line in card(done).text.splitlines() if line.startswith("|")]
    heads, _, *values = [[cell.strip() for cell in row] for row in rows]
    assert heads == ["step", "teacher-forced", "free-running", "gap"]
    assert [row[0] for row in values] == ["0", "2", "4", "6"]
    assert [row[3] for row in values] == [f"{gap:.4f}" for gap in logged(done, "exposure_bias/gap")]


def test_no_secret_and_no_path_is_in_it(done):
    content = card(done).content
    assert "hf_secret" not in content and "<redacted>" in content
    assert str(done.args.output_dir) not in content


def test_names_from_outside_stay_text(done):
    read = card(done, model_name=HOSTILE, dataset_name=HOSTILE, tags=["a: {b}", "x"])
    assert read.data.model_name == HOSTILE and {"a: {b}", "x", "bash"} <= set(read.data.tags)
    assert read.data.datasets == HOSTILE
    assert r"evil {{ 7 \* 7 }} {% raw %} &lt;script&gt;" in read.text and "<script>" not in read.text
    headings = [line for line in read.text.splitlines() if line.startswith("#")]
    assert headings[1:] == [
        "## Quick start",
        "## Training",
        "### Recipe",
        "## Exposure bias",
        "### Versions",
        "## Citation",
    ]
    assert all("\n" not in line and "`code`" not in line.replace(r"\`", "") for line in headings)
    block = re.search(r"```python\n(.*?)```", read.text, re.DOTALL)[1]
    model = compile(block, "card", "exec").co_consts
    assert HOSTILE in model, "the code names the model as it is"


def test_a_card_names_what_the_model_was_made_from(done, monkeypatch):
    monkeypatch.setattr(done.model.config, "_name_or_path", "org/base")
    monkeypatch.setattr(done.model.config, "_commit_hash", "b" * 40, raising=False)
    monkeypatch.setattr(done, "hub_model_id", "me/tuned")
    read = card(done, dataset_name="org/data")
    assert (read.data.base_model, read.data.base_model_relation) == ("org/base", "finetune")
    assert read.data.datasets == "org/data" and read.data.model_name == "tuned"
    assert "[org/base](https://huggingface.co/org/base)" in read.text
    assert "[org/data](https://huggingface.co/datasets/org/data)" in read.text
    assert f"Base model's revision: {'b' * 40}" in read.text
    assert 'model="me/tuned"' in read.text


def test_a_model_saved_elsewhere_has_its_card_there(done, tmp_path):
    done.save_model(str(tmp_path / "elsewhere"))
    assert "**BASH**" in ModelCard.load(tmp_path / "elsewhere" / "README.md").text


def test_the_card_of_an_adapter_before_training(tmp_path):
    """No step, no fingerprint, no gap: the card says what is known, and PEFT's own card is replaced."""
    model = tiny_model()
    model.config._name_or_path = "org/base"
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    made = trainer(RACTrainer, config(RACConfig, tmp_path), conversations(4), model, peft_config=lora)
    made.save_model()
    read = ModelCard.load(tmp_path / "README.md")
    assert read.data.base_model_relation == "adapter" and "This adapter is for" in read.text
    assert "**RAC**" in read.text and RACTrainer._paper["citation"] in read.text
    assert "Exposure bias" not in read.text and "Steps" not in read.text


def test_checkpoints_leave_a_card_too(tmp_path):
    args = config(BASHConfig, tmp_path, beta=0.0, num_iterations=1, save_strategy="steps", save_steps=1, max_steps=1)
    trainer(BASHTrainer, args, conversations(4)).train()
    assert "**BASH**" in ModelCard.load(tmp_path / "README.md").text


def test_plain_text_is_one_line_without_markup():
    assert plain("a | b\n<b>*c*</b> & `d` [e](f)") == r"a \| b &lt;b&gt;\*c\*&lt;/b&gt; &amp; \`d\` \[e\](f)"
    assert plain("ключ {{ x }}") == "ключ {{ x }}"
    assert hub_link("a b", "datasets/") == "a b"
    assert hub_link("a/b-1.0") == "[a/b-1.0](https://huggingface.co/a/b-1.0)"
    assert (fence("x"), fence("a ``` b ```` c")) == ("```", "`````")
