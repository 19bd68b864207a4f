"""The GPU benchmark at toy size on a CPU, through the same code; what it leaves when it is cut off; the page it fills."""

import json

import pytest
import torch
from transformers import MistralConfig

from examples.benchmarks.gpu import training_steps
from examples.benchmarks.gpu.__main__ import main, run_part
from examples.benchmarks.gpu.parts import PARTS, ROOT, Part
from examples.benchmarks.gpu.planned import model_config, planned_peaks
from examples.benchmarks.gpu.random_policy import random_policy
from examples.benchmarks.gpu.results import Results
from examples.benchmarks.gpu.seven_b import MODES
from examples.benchmarks.gpu.table import BEGIN, END, NOTHING, fill, read, section
from trl_exbias.demo.embedded_model import embedded_model_folder, is_made

from .gpu.memory import CountedMeter


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """Every part, the first one cut off after its first figures and continued."""
    if not is_made(embedded_model_folder()):
        pytest.skip("SmolLM2 is not in the cache: python -m trl_exbias.demo.embedded_model")
    folder = tmp_path_factory.mktemp("bench-gpu")
    path = folder / "seven_b.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        seconds = 4.0
        while not path.is_file() or len(json.loads(path.read_text(encoding="utf-8"))["figures"]) < 2:
            assert run_part(PARTS[0], path, seconds, dry_run=True) in (None, 0)
            seconds *= 1.5
        before = json.loads(path.read_text(encoding="utf-8"))
        assert main(["--dry_run", "--output", str(folder)]) == 0
    return folder, before


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_finishes(part, dry_run):
    content = json.loads((dry_run[0] / f"{part.name}.json").read_text(encoding="utf-8"))
    assert content["finished"] and content["figures"]
    assert content["machine"]["torch"] and content["machine"]["card"] is None


def test_what_was_measured_before_the_cut_is_not_measured_again(dry_run):
    folder, before = dry_run
    after = json.loads((folder / "seven_b.json").read_text(encoding="utf-8"))
    assert before["figures"]["matrix_rate"] == after["figures"]["matrix_rate"]
    seconds = after["seconds"]
    assert set(seconds) == set(after["figures"])
    assert all(0 <= timed["took"] <= timed["since_start"] for timed in seconds.values())


def test_steps_run_and_are_planned_with_checkpointing_and_without(dry_run):
    figures = json.loads((dry_run[0] / "seven_b.json").read_text(encoding="utf-8"))["figures"]
    planned = {}
    for mode, checkpointing in MODES.items():
        steps = figures[f"steps 3/10 {mode}"]
        assert steps["joint"]["tokens"] > steps["sft"]["tokens"]
        assert ("share_with_recomputation" in steps["joint"]) == checkpointing
        planned[checkpointing] = steps["joint"]["planned"]["activations"]
        assert figures[f"global batch 3/10 {mode}"]["training_seconds"] > 0
    assert planned[True] < planned[False]
    # In float32 the sweeps give the tokens of decoding.
    assert figures["rollouts 6/8"]["mix_own"]["equal_rows"] == 1
    assert "mix_own" in figures["rollouts 3/10"] and "mix_random" not in figures["rollouts 3/10"]


@pytest.mark.parametrize("checkpointing", MODES.values(), ids=MODES)
def test_a_step_takes_what_is_planned_for_it(checkpointing, tmp_path, monkeypatch):
    """Within 5 %: in mixed precision as `train()` has it, where adapters that computed in float32 would keep a third more."""
    monkeypatch.setattr(training_steps, "precision", lambda: {"bf16": True, "use_cpu": True})
    size = {"hidden_size": 256, "intermediate_size": 896, "num_attention_heads": 8, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=512, num_hidden_layers=4, **size, bos_token_id=None, eos_token_id=None)
    model_args = model_config("random", 16, "bfloat16")
    with CountedMeter() as meter:
        policy = random_policy(config, torch.bfloat16).cpu()
        trainer = training_steps.make_trainer(tmp_path, policy, model_args, 96, 48, 4, 1024, checkpointing)
        examples = training_steps.examples_of(trainer)
        batch = trainer.data_collator.collate(examples)
        for _ in range(2):  # the optimizer's states stand from the first step on
            meter.live()
            meter.reset_peak()
            trainer.training_step(trainer.model_wrapped, dict(batch))
            peak = meter.peak()
            trainer.optimizer.step()
            trainer.model.zero_grad()
    joint = training_steps.layout_of(examples)
    planned = planned_peaks(config, trainer.args, model_args, joint, joint, on_cpu=True)["iteration 1"]
    assert planned["total"] == pytest.approx(peak, rel=0.05)


def test_what_a_part_prints_is_kept_also_of_one_that_is_stopped(tmp_path, monkeypatch, capfd):
    (tmp_path / "talking.py").write_text("import time\nprint('so far', flush=True)\ntime.sleep(60)", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(Part, "module", "talking")
    path = tmp_path / "out" / "talking.json"
    for _ in range(2):
        assert run_part(Part("talking", "", 0), path, 1.0, dry_run=False) is None
    assert path.with_suffix(".log").read_text(encoding="utf-8") == "so far\n" * 2
    assert capfd.readouterr().out == "so far\n" * 2


def test_arms_of_gsm8k_consume_about_as_much(dry_run):
    figures = json.loads((dry_run[0] / "gsm8k.json").read_text(encoding="utf-8"))["figures"]
    spent = {
        key: sum(value["consumed"][sort] for sort in ("trained", "generated", "labels"))
        for key, value in figures.items()
        if key.endswith("seed 0") and not key.startswith("SFT")
    }
    # RAC and SPIN count on answers as long as gold; here they are cut off at six tokens.
    for arm in ("BASH 0.2, seed 0", "BASH 0.5, seed 0"):
        assert spent[arm] == pytest.approx(spent["more SFT, seed 0"], rel=0.1)
    assert set(figures["against more SFT"]) == {"BASH 0.2", "BASH 0.5", "RAC", "SPIN"}


def test_a_second_run_has_nothing_to_do(dry_run, capsys):
    assert main(["--dry_run", "--output", str(dry_run[0])]) == 0
    assert capsys.readouterr().out.count("finished before") == len(PARTS)


def test_a_dry_run_is_no_measurement(dry_run):
    results = {part.name: json.loads((dry_run[0] / f"{part.name}.json").read_text(encoding="utf-8")) for part in PARTS}
    assert section(results) == NOTHING
    for content in results.values():
        content["machine"] |= {"card": "Some Card", "date": "2026-01-01"}
    filled = section(results)
    assert filled.count("Some Card, 2026-01-01, torch") == len(PARTS)
    assert "| BASH joint step, share of the matrix rate, prompt 6 / response 8, with checkpointing |" in filled
    assert "points [" in filled and "perplexity" in filled
    del results["gsm8k"]["finished"]
    assert "Cut off by its time limit" in section(results)


def test_the_page_keeps_what_stands_around_its_figures():
    page = fill(f"before\n{BEGIN}\nold\n{END}\nafter\n", {})
    assert page == f"before\n{BEGIN}\n{NOTHING}\n{END}\nafter\n"
    with pytest.raises(ValueError, match="no section between"):
        fill("before", {})


def test_the_shipped_page_shows_what_the_shipped_files_hold():
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    newest = max((ROOT / "examples" / "benchmarks" / "gpu" / "measured").iterdir())
    assert fill(text, read(newest)) == text
    assert "NVIDIA" in text.partition(BEGIN)[2].partition(END)[0]


def test_a_part_without_its_inputs_is_left_out_with_a_word(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRL_EXBIAS_CACHE", str(tmp_path / "nothing"))
    assert main(["--output", str(tmp_path), "--parts", "gsm8k", "stories"]) == 0
    assert capsys.readouterr().out.count("left out: SmolLM2 is not in") == 2


def test_results_of_other_settings_are_dropped(tmp_path):
    first = Results(tmp_path / "part.json", {"rows": 1})
    first.put("figure", 2.0)
    assert Results(tmp_path / "part.json", {"rows": 1})["figure"] == 2.0
    assert "figure" not in Results(tmp_path / "part.json", {"rows": 2})
