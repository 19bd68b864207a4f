"""On a GPU with vLLM: what a rollout phase takes, it gives back."""

import importlib.util

import pytest
import torch

from trl_exbias.demo.embedded_model import embedded_model
from trl_exbias.rollouts import SamplingOptions, VLLMEngine


pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("vllm") is None, reason="needs a GPU and vLLM"
)


def test_the_memory_is_free_again_when_the_phase_ends():
    torch.cuda.init()
    before, total = torch.cuda.mem_get_info()
    with VLLMEngine(embedded_model(), max_model_len=256, gpu_memory_utilization=0.3) as engine:
        engine.sample([[1, 2, 3]], SamplingOptions(max_new_tokens=8))
        assert before - torch.cuda.mem_get_info()[0] > 0.2 * total, "it did take memory"
    assert before - torch.cuda.mem_get_info()[0] < 64 << 20
