"""The notebooks, executed from the first cell to the last: a tiny model is put in their place by the cell of parameters."""

import json
from pathlib import Path

import pytest
import yaml

from .tiny import byte_tokenizer, tiny_model


NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def cells(name: str) -> list[dict]:
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_has_its_parameters_in_one_cell(path):
    code = [cell for cell in cells(path.stem) if cell["cell_type"] == "code"]
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"]]
    assert [cell["metadata"].get("tags") for cell in code].count(["parameters"]) == 1
    for cell in code:
        compile("".join(cell["source"]), path.name, "exec")


@pytest.fixture
def execute(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    tiny_model().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"question": f"{i} + 1?", "answer": f"It is {i + 1}."}) + "\n" for i in range(8))
    )
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def execute(name: str, parameters: str) -> str:
        """Runs a notebook with other parameters; returns what it printed."""
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        at = [cell.metadata.get("tags") for cell in notebook.cells].index(["parameters"])
        notebook.cells[at].source = parameters
        nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        return "".join(output["text"] for output in outputs if output.get("name") == "stdout")

    return execute


@pytest.mark.slow
def test_the_tour_runs_from_end_to_end(execute):
    said = execute("cpu_tour", "MODEL, OUTPUT = 'model', 'out'\nROWS, HELD_OUT = 4, 2")
    assert "teacher-forced" in said and said.count("drawn instead of gold:") == 3


@pytest.mark.slow
def test_the_notebook_for_a_gpu_runs_with_a_tiny_model_in_its_place(execute):
    said = execute(
        "lora_mistral",
        "MODEL = TOKENIZER = 'model'\nDATA, CONFIG = 'rows.jsonl', None\nROWS, BATCH, ACCUMULATION = 8, 2, 2\n"
        "OUTPUT, DTYPE, ON_CPU = 'out', 'float32', True",
    )
    assert "bash/changed_rate" in said and "loss/mixed" in said


def test_the_notebook_for_a_gpu_has_the_settings_of_its_recipe():
    recipe = yaml.safe_load((NOTEBOOKS.parent / "recipes/bash/mistral-7b-lora_gsm8k.yaml").read_text(encoding="utf-8"))
    source = "\n".join("".join(cell["source"]) for cell in cells("lora_mistral"))
    for key in ("sft_epochs", "num_iterations", "num_train_epochs", "beta", "max_length"):
        assert f"{key}={recipe[key]}," in source
    assert f'MODEL = "{recipe["model_name_or_path"]}"' in source and f'"{recipe["dataset_name"]}"' in source
    assert f"r={recipe['lora_r']}, lora_alpha={recipe['lora_alpha']}" in source
