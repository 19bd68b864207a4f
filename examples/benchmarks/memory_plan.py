"""Predicted against measured memory of `exbias check`, for three models on a CPU: weights, optimizer states, LM head, activations."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, PretrainedConfig, PreTrainedModel, Qwen2Config
from transformers.modeling_outputs import BaseModelOutput
from trl.trainer.utils import add_fused_lm_head

from trl_exbias.core.distillation import distillation_scores
from trl_exbias.core.modeling import LMHead, attention_mask_4d, backbone
from trl_exbias.core.soft_targets import DenseTarget
from trl_exbias.planning.activations import count_activations
from trl_exbias.planning.lm_head import distillation_head, fused_head
from trl_exbias.planning.memory import standing
from trl_exbias.planning.model import meta_model, model_facts
from trl_exbias.planning.placement import Placement

from .common import memory, report


CPU = Placement(cpu=True)
#: Random models of 20 to 60 M parameters: tied and untied heads, with and without a soft-cap, three kinds of blocks.
CONFIGS: dict[str, PretrainedConfig] = {
    "qwen2": Qwen2Config(
        vocab_size=49152,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    ),
    "gpt2": GPT2Config(vocab_size=50257, n_embd=384, n_layer=8, n_head=6, n_positions=512, attn_pdrop=0.0),
    "gemma2": Gemma2Config(
        vocab_size=65536,
        hidden_size=320,
        intermediate_size=1280,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=80,
    ),
}
ROWS, LENGTH = 2, 256
PARTS = ("weights", "optimizer", "LM head", "distillation", "activations")


def build(name: str) -> PreTrainedModel:
    """The model with its weights, in training mode, as the trainers have it on a CPU."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32).train()


def predicted(name: str) -> dict[str, int]:
    """Bytes of each part, without the weights."""
    model = meta_model(CONFIGS[name], torch.float32, CPU)
    facts = model_facts(model, torch.float32)
    shape = (facts.vocab_size, facts.hidden_size, torch.float32, torch.float32, facts.head_trained)
    stand = standing(facts, CPU, "adamw_torch")
    return {
        "weights": stand.weights,
        "optimizer": stand.optimizer,
        "LM head": fused_head(ROWS * LENGTH, *shape, facts.softcap, on_cpu=True).total,
        "distillation": distillation_head(ROWS * LENGTH, *shape, softcap=facts.softcap, on_cpu=True).total,
        "activations": count_activations(model, ROWS, LENGTH, None).kept(checkpointing=False),
    }


def measured(name: str, part: str) -> int:
    """Bytes of a part as it really stands: tensors where they stay, resident memory of a process where they come and go."""
    if part in ("weights", "optimizer"):
        return {"weights": _weights, "optimizer": _optimizer}[part](build(name))
    command = [sys.executable, "-m", "examples.benchmarks.memory_plan", name, part]
    # Every tensor is a mapping of its own, which goes back to the kernel when the tensor does: what is resident is what stands.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=environment
    )
    return json.loads(done.stdout)


def _weights(model: PreTrainedModel) -> int:
    tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()]}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _optimizer(model: PreTrainedModel) -> int:
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.arange(8).unsqueeze(0), labels=torch.arange(8).unsqueeze(0)).loss.backward()
    optimizer.step()
    states = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in states)


def _resident(name: str, part: str) -> int:
    """What a part adds to this process: at its peak, or, where it is kept for a backward, when it is done."""
    model, run = _run(name, part)
    run()  # code is resident from its first use on
    model.zero_grad()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the kernel's peak counter starts over
    before = memory("VmRSS")
    kept = run()
    after = memory("VmHWM" if kept is None else "VmRSS")
    return after - before


def _run(name: str, part: str) -> tuple[PreTrainedModel, Callable[[], object]]:
    """A model, and what needs the part's memory; it returns what keeps that memory, if anything does."""
    model = build(name)
    head, labels = LMHead(model), torch.randint(CONFIGS[name].vocab_size, (ROWS, LENGTH))
    if part == "activations":
        mask = attention_mask_4d(torch.ones(ROWS, 1, LENGTH, LENGTH, dtype=torch.bool).tril(), model.config)
        return model, lambda: backbone(model)(input_ids=labels, attention_mask=mask, use_cache=False).last_hidden_state
    hidden = torch.randn(ROWS, LENGTH, head.projection.in_features, requires_grad=True)
    if part == "distillation":
        teacher, weights = LMHead(build(name)), torch.full((ROWS * LENGTH,), 1 / (ROWS * LENGTH))
        target = DenseTarget(torch.randn(ROWS * LENGTH, hidden.size(-1)), teacher, head.vocab_size)
        flat, labels = hidden.detach().flatten(0, 1).requires_grad_(), labels.flatten()
        return model, lambda: distillation_scores(flat, head, labels, target, weights, weights).loss.backward()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))

    # Hidden states without layers: what is measured is the head's alone.
    model.base_model.forward = lambda **inputs: BaseModelOutput(last_hidden_state=hidden)
    return model, lambda: model(shift_labels=labels, fused_lm_head=True).loss.backward()


def main() -> None:
    """A line for each model and part."""
    for name in CONFIGS:
        expected = predicted(name)
        for part in PARTS:
            found = measured(name, part)
            mib = f"{expected[part] / 2**20:.0f} ÷ {found / 2**20:.0f} MiB"
            report(f"Planned ÷ measured memory, {name}, {part}", expected[part] / found, "0.85 to 1.15", mib)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(_resident(*sys.argv[1:]))
    else:
        main()
