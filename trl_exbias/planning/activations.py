"""What a forward keeps for its backward, counted on the meta device: shapes and types, no memory, no arithmetic.

The model's own code runs on tensors without storage, and autograd says what it saves. Attention is replaced by a stand-in
that saves what a fused kernel does (queries, keys, values, output, log-sum-exp, mask), never the scores, and autocast by a
mode that casts what autocast would.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, PreTrainedModel

from ..core.modeling import backbone, base_causal_lm
from ..core.upstream import attention_implementation, checkpointed_layers, storage_id


#: Name under which the stand-in is registered.
ATTENTION = "exbias_planning"


@dataclass(frozen=True)
class Activations:
    """
    Bytes that one micro-batch keeps for its backward.

    Args:
        layers (`int`): All decoder layers together.
        layer (`int`): The largest layer: what gradient checkpointing works out again, one layer at a time.
        layer_inputs (`int`): The hidden states between the layers: what gradient checkpointing keeps.
        rest (`int`): Outside the layers (embeddings, final norm), and what all layers share (mask, rotary tables).
        largest (`int`): The largest single tensor.
        hidden (`int`): The last hidden states.
    """

    layers: int
    layer: int
    layer_inputs: int
    rest: int
    largest: int
    hidden: int

    def kept(self, checkpointing: bool) -> int:
        """What stands when the forward is done."""
        return self.rest + (self.layer_inputs if checkpointing else self.layers)

    def recomputed(self, checkpointing: bool) -> int:
        """What the backward works out again, at its largest."""
        return self.layer if checkpointing else 0

    @property
    def gradients(self) -> int:
        """Gradients of activations that stand at one time in a layer's backward: an estimate, of two of the largest."""
        return 2 * self.largest


def count_activations(
    model: PreTrainedModel, rows: int, length: int, autocast: torch.dtype | None, masked: bool = True
) -> Activations:
    """
    Counts what a forward of the backbone saves.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            On the meta device, made with `attn_implementation=ATTENTION`, in training mode; what is trained requires a gradient.
        rows, length (`int`): The micro-batch.
        autocast (`torch.dtype`, *optional*): The type of mixed precision; `None` where there is none.
        masked (`bool`): Whether the attention gets a mask (branches, padding) or only knows to be causal.
    """
    saved = _Saved({*map(storage_id, [*model.parameters(), *model.buffers()])})
    layers = checkpointed_layers(model)
    hooks = [hook for layer in layers for hook in saved.watch(layer)]
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    inputs = {"input_ids": ids, "position_ids": ids, "use_cache": False}
    if masked and hasattr(base_causal_lm(model).config.get_text_config(), "num_attention_heads"):
        mask = torch.ones(rows, 1, length, length, dtype=torch.bool, device="meta")
        inputs["attention_mask"] = (
            mask if attention_implementation(base_causal_lm(model).config) == ATTENTION else mask.float()
        )
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            if autocast is None:
                hidden = backbone(model)(**inputs).last_hidden_state
            else:
                with _MetaAutocast(autocast):
                    hidden = backbone(model)(**inputs).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    by_layer = [saved.bytes.get(layer, 0) for layer in layers]
    return Activations(
        layers=sum(by_layer),
        layer=max(by_layer, default=0),
        layer_inputs=saved.inputs,
        rest=saved.bytes.get(None, 0),
        largest=saved.largest,
        hidden=hidden.numel() * hidden.element_size(),
    )


class _Saved:
    """Bytes of the storages that autograd saves, each once, by the decoder layer that was running."""

    def __init__(self, weights: set[int]):
        self.weights = weights
        self.bytes: dict[torch.nn.Module | None, int] = {}
        self.inputs = 0
        self.largest = 0
        self._seen: set[int] = set()
        self._kept: list[torch.Tensor] = []
        self._layer: torch.nn.Module | None = None

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage, storage_of = tensor.untyped_storage(), storage_id(tensor)
        if storage_of not in self.weights and storage_of not in self._seen:
            self._seen.add(storage_of)
            self._kept.append(tensor)  # an address must not be used again
            self.bytes[self._layer] = self.bytes.get(self._layer, 0) + storage.nbytes()
            self.largest = max(self.largest, storage.nbytes())
        return tensor

    def watch(self, layer: torch.nn.Module) -> list:
        def enter(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self._layer = module
            hidden = args[0] if args else kwargs["hidden_states"]
            self.inputs += hidden.numel() * hidden.element_size()

        def leave(module: torch.nn.Module, args: tuple, output: Any) -> None:
            self._layer = None

        return [layer.register_forward_pre_hook(enter, with_kwargs=True), layer.register_forward_hook(leave)]


class _FusedAttention(torch.autograd.Function):
    """Shapes of a fused attention kernel: it keeps its inputs, its output and one number a query for the backward."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        output = query.new_empty(*query.shape[:-1], value.size(-1))
        normaliser = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, normaliser, *([] if mask is None else [mask]))
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> None:
        raise NotImplementedError("for planning only")


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    # Rotary embeddings leave queries and keys in the type of the hidden states; autocast casts what goes into the kernel.
    query, key, value = (_cast(states, _MetaAutocast.current or states.dtype) for states in (query, key, value))
    # As `sdpa_attention_forward`: keys and values are repeated for a mask, which the kernel takes in their type.
    groups = query.size(1) // key.size(1)
    if attention_mask is not None:
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        attention_mask = torch.empty(attention_mask.shape, dtype=query.dtype, device="meta")
    output = _FusedAttention.apply(query, key, value, attention_mask)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)


class _MetaAutocast(TorchFunctionMode):
    """What `torch.autocast` does to matrix products and attention; autocast itself leaves meta tensors alone."""

    #: The type of the mode that is on, for the stand-in above, which is not a function of torch.
    current: torch.dtype | None = None

    _PRODUCTS = frozenset(
        {
            torch.nn.functional.linear,
            torch.matmul,
            torch.mm,
            torch.bmm,
            torch.addmm,
            torch.baddbmm,
            torch.Tensor.matmul,
            torch.Tensor.__matmul__,
        }
    )
    # Kept in float32 on a GPU.
    _PRECISE = frozenset({torch.nn.functional.layer_norm, torch.nn.functional.softmax, torch.pow, torch.Tensor.pow})

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def __enter__(self) -> Any:
        _MetaAutocast.current = self.dtype
        return super().__enter__()

    def __exit__(self, *error: object) -> Any:
        _MetaAutocast.current = None
        return super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in self._PRODUCTS or func in self._PRECISE:
            dtype = self.dtype if func in self._PRODUCTS else torch.float32
            args = tuple(_cast(argument, dtype) for argument in args)
        return func(*args, **(kwargs or {}))


def _cast(argument: Any, dtype: torch.dtype) -> Any:
    if not isinstance(argument, torch.Tensor) or argument.dtype == dtype or not argument.is_floating_point():
        return argument
    return argument.to(dtype)
