"""The name under which `vllm serve` loads the logits processor, in users' commands: `trl_exbias.rollouts.vllm_mixing:ForcedTokens`."""

from .vllm.mixing import ForcedTokens, MixScheduler


__all__ = ["ForcedTokens", "MixScheduler"]
