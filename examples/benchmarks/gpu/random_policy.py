"""A model of any size with random weights that speaks as surely as a trained one, made on the device: nothing is fetched."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from trl_exbias.core.modeling import LMHead, inference, read_backbone

from .common import device


def random_policy(config: PretrainedConfig, dtype: torch.dtype, entropy: float = 1.0) -> PreTrainedModel:
    """
    A model whose next-token distributions have this mean entropy, in nats, on random contexts.

    With weights as they are initialised a distribution is nearly flat (about 9.5 of 10.4 nats), and every drawn token would
    differ from every other draw. The LM head is scaled until the entropy is that of a 7B model on text it knows.
    """
    torch.manual_seed(0)
    with torch.device(device()):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval()
    tokens = torch.randint(config.vocab_size, (4, 64), device=device())
    with inference(model):
        hidden = read_backbone(model, input_ids=tokens, use_cache=False).last_hidden_state[:, 16:].flatten(0, 1)
        logits = LMHead(model)(hidden)
        low, high = 0.0, 64.0
        for _ in range(20):
            scale = (low + high) / 2
            log_probs = (scale * logits).log_softmax(-1)
            found = -(log_probs.exp() * log_probs).sum(-1).mean().item()
            low, high = (scale, high) if found > entropy else (low, scale)
        model.get_output_embeddings().weight.mul_(scale)
    return model


def numbered_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """One token a number: rows are token ids already, and nothing is read with it."""
    words = {f"t{i}": i for i in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="t2", pad_token="t1", unk_token="t0")
