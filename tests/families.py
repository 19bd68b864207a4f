"""Tiny models of architectures that are not plain transformers: recurrent, hybrid, with capped or scaled logits, multimodal."""

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel

from .tiny import VOCAB_SIZE


_NONE = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
_SIZE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    **_NONE,
}
_STATE = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, **_NONE}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
_SSM = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8}
_GEMMA = {**_SIZE, "head_dim": 8, "query_pre_attn_scalar": 8}
_SHARING = {
    **_SIZE,
    "num_hidden_layers": 4,
    "head_dim": 8,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB_SIZE,
}

#: Layers of which at least one is recurrent.
RECURRENT = {
    "mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(**_STATE, state_size=8)),
    "mamba2": lambda: hf.Mamba2ForCausalLM(
        hf.Mamba2Config(**_STATE, state_size=8, num_heads=8, head_dim=8, n_groups=1, expand=2, chunk_size=16)
    ),
    "falcon_mamba": lambda: hf.FalconMambaForCausalLM(hf.FalconMambaConfig(**_STATE, state_size=8)),
    # Seven layers: in evaluation mode, the weights of the last one are halved.
    "rwkv": lambda: hf.RwkvForCausalLM(
        hf.RwkvConfig(**{**_STATE, "num_hidden_layers": 7}, attention_hidden_size=32, intermediate_size=64)
    ),
    # transformers 5.17 makes its cache in another shape than its layers'.
    "xlstm": lambda: hf.xLSTMForCausalLM(
        hf.xLSTMConfig(**_STATE, embedding_dim=32, num_blocks=2, num_heads=4, chunk_size=16, use_cache=False)
    ),
    "recurrent_gemma": lambda: hf.RecurrentGemmaForCausalLM(
        hf.RecurrentGemmaConfig(
            **{**_STATE, "num_hidden_layers": 3},
            intermediate_size=96,
            num_attention_heads=4,
            lru_width=32,
            attention_window_size=64,
            logits_soft_cap=5.0,
        )
    ),
    "lfm2": lambda: hf.Lfm2ForCausalLM(
        hf.Lfm2Config(**_SIZE, layer_types=["conv", "full_attention"], block_multiple_of=16)
    ),
    "lfm2_moe": lambda: hf.Lfm2MoeForCausalLM(
        hf.Lfm2MoeConfig(**_SIZE, **_EXPERTS, num_dense_layers=1, layer_types=["conv", "full_attention"])
    ),
    "qwen3_5": lambda: hf.Qwen3_5ForCausalLM(hf.Qwen3_5TextConfig(**_SIZE, **_LINEAR, head_dim=8)),
    "qwen3_next": lambda: hf.Qwen3NextForCausalLM(
        hf.Qwen3NextConfig(**_SIZE, **_LINEAR, **_EXPERTS, head_dim=8, shared_expert_intermediate_size=16)
    ),
    "jamba": lambda: hf.JambaForCausalLM(
        hf.JambaConfig(
            **_SIZE,
            num_experts=2,
            num_experts_per_tok=1,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            mamba_d_state=8,
            use_mamba_kernels=False,
        )
    ),
    "bamba": lambda: hf.BambaForCausalLM(hf.BambaConfig(**_SIZE, **_SSM, attn_layer_indices=[1], attn_rotary_emb=4)),
    "falcon_h1": lambda: hf.FalconH1ForCausalLM(
        hf.FalconH1Config(**_SIZE, **{**_SSM, "mamba_d_head": 8}, mamba_d_ssm=32, lm_head_multiplier=0.5)
    ),
    "granitemoehybrid": lambda: hf.GraniteMoeHybridForCausalLM(
        hf.GraniteMoeHybridConfig(
            **_SIZE,
            **_SSM,
            num_local_experts=0,
            shared_intermediate_size=48,
            layer_types=["mamba", "attention"],
            logits_scaling=2.0,
        )
    ),
    "nemotron_h": lambda: hf.NemotronHForCausalLM(
        hf.NemotronHConfig(
            **{name: value for name, value in _SIZE.items() if name != "num_hidden_layers"},
            layers_block_type=["mamba", "attention"],
            mamba_num_heads=4,
            mamba_head_dim=16,
            n_groups=1,
            ssm_state_size=8,
            head_dim=8,
        )
    ),
}

#: Logits that are scaled or capped after the projection, each under a name of its own.
FINISHED = {
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**_GEMMA, final_logit_softcapping=5.0)),
    "recurrent_gemma": RECURRENT["recurrent_gemma"],
    "xlstm": RECURRENT["xlstm"],
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**_SIZE, logit_scale=0.25)),
    "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**_SIZE, logits_scaling=8.0)),
    "falcon_h1": RECURRENT["falcon_h1"],
    "minicpm3": lambda: hf.MiniCPM3ForCausalLM(
        hf.MiniCPM3Config(
            **{**_SIZE, "num_key_value_heads": 4},
            dim_model_base=16,
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
        )
    ),
}

LLAMA4 = {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48}
OTHERS = {
    "llama4": lambda: hf.Llama4ForCausalLM(hf.Llama4TextConfig(**_SIZE, **LLAMA4)),
    "qwen3_moe": lambda: hf.Qwen3MoeForCausalLM(
        hf.Qwen3MoeConfig(**_SIZE, **_EXPERTS, head_dim=8, decoder_sparse_step=1)
    ),
    # Two hidden states a token, and two layers that take keys and values of those below.
    "gemma3n": lambda: hf.Gemma3nForCausalLM(
        hf.Gemma3nTextConfig(**_SHARING, laurel_rank=4, altup_num_inputs=2, activation_sparsity_pattern=[0.0] * 4)
    ),
    "gemma4": lambda: hf.Gemma4ForCausalLM(hf.Gemma4TextConfig(**_SHARING)),
    "bidirectional": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**_GEMMA, sliding_window=64, use_bidirectional_attention=True)
    ),
    "bert": lambda: hf.BertLMHeadModel(
        hf.BertConfig(**{k: v for k, v in _SIZE.items() if k != "num_key_value_heads"}, is_decoder=True)
    ),
}


def family(name: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model of an architecture, with weights large enough for its distributions to be peaked."""
    torch.manual_seed(seed)
    try:
        model = {**OTHERS, **FINISHED, **RECURRENT}[name]()
    except AttributeError as error:
        if "module transformers has no attribute" not in str(error):
            raise
        pytest.skip(f"not in this release: {error}")
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(8 if "embed" in parameter_name else 3)
    model.generation_config.eos_token_id = None
    return model.eval()
