"""The frozen lower layers of a model: in training their output never changes, so each row's is computed once.

Nothing of a model's code is copied. Its own forward runs, embeddings, positions and masks included; a layer that need not be
computed has a stand-in in the list of layers for so long.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .fingerprint import parameters_fingerprint
from .modeling import backbone, base_causal_lm
from .reading import read_padded
from .stand_ins import in_place, only_at


class FrozenTrunk:
    """
    The layers of a model below the first one that is trained.

    Args:
        model (`nn.Module`): A causal LM, or a PEFT model of one.
        layers (`nn.ModuleList`): Its decoder layers.
        depth (`int`): How many of them, from the embeddings on, train nothing.

    Shapes: B rows, L tokens of a row, H hidden size.
    """

    def __init__(self, model: nn.Module, layers: nn.ModuleList, depth: int):
        self.model, self.layers, self.depth = model, layers, depth
        #: Children of the last layer, as [`position_wise_parts`] finds them.
        self.position_wise: list[str] = []
        # How the layers hand on their hidden states, alone or in a tuple; known once the last one has run.
        self._wrap: Callable[[torch.Tensor], Any] = lambda hidden: hidden

    @contextlib.contextmanager
    def recorded(self) -> Iterator[list[torch.Tensor]]:
        """In the block a forward ends with the trunk, whose output `(B, L, H)` is added to the list."""
        outputs: list[torch.Tensor] = []

        def record(*args: Any, **kwargs: Any) -> Any:
            result = last(*args, **kwargs)
            hidden = result[0] if isinstance(result, tuple) else result
            if isinstance(result, tuple):
                rest = (None,) * (len(result) - 1)
                self._wrap = lambda hidden: (hidden, *rest)
            outputs.append(hidden)
            return result

        last = self.layers[self.depth - 1]
        above = range(self.depth, len(self.layers))
        with in_place(self.layers, {str(self.depth - 1): record, **dict.fromkeys(map(str, above), self._passes_on)}):
            yield outputs

    @contextlib.contextmanager
    def known(self, states: torch.Tensor, scored: torch.Tensor | None = None) -> Iterator[None]:
        """
        In the block a forward begins after the trunk.

        Args:
            states (`torch.Tensor` of shape `(B, L, H)`): The trunk's output.
            scored (`torch.Tensor` of shape `(B, L)`, *optional*):
                Positions whose last hidden state is used. The last layer's `position_wise` parts run there alone.
        """

        def hand_over(*args: Any, **kwargs: Any) -> Any:
            # What reentrant gradient checkpointing asks of the embeddings (`enable_input_require_grads`) holds here too.
            return self._wrap(states.detach().requires_grad_(_hidden(args, kwargs).requires_grad))

        below = dict.fromkeys(map(str, range(self.depth - 1)), self._passes_on)
        with in_place(self.layers, {**below, str(self.depth - 1): hand_over}), self._only_at(scored):
            yield

    @contextlib.contextmanager
    def _only_at(self, scored: torch.Tensor | None) -> Iterator[None]:
        last = self.layers[-1]
        checkpoints = getattr(last, "gradient_checkpointing", None)
        foreign = checkpoints is None and base_causal_lm(self.model).is_gradient_checkpointing
        if scored is None or not self.position_wise or foreign:
            yield
            return
        # What gradient checkpointing runs again, it runs after the block, when the parts are back. The last layer needs none: the
        # backward pass begins with it.
        with only_at(scored, last, self.position_wise):
            try:
                if checkpoints:
                    last.gradient_checkpointing = False
                yield
            finally:
                if checkpoints:
                    last.gradient_checkpointing = True

    def read(self, rows: Sequence[Sequence[int]], pad_token_id: int) -> list[torch.Tensor]:
        """
        The trunk's output for whole rows of tokens.

        Returns:
            `list[torch.Tensor]` of shape `(tokens, H)` each.
        """
        with self.recorded() as outputs:
            read_padded(self.model, [row or [pad_token_id] for row in rows], pad_token_id)
        (hidden,) = outputs
        return [states[: len(row)] for states, row in zip(hidden, rows, strict=True)]

    def fingerprint(self) -> str:
        """Identity of what the output depends on besides the tokens: frozen weights and configuration."""
        above = {id(parameter) for layer in self.layers[self.depth :] for parameter in layer.parameters()}
        named = backbone(self.model).named_parameters()
        frozen = {name: p for name, p in named if not p.requires_grad and id(p) not in above}
        config = base_causal_lm(self.model).config.to_dict()
        settings = {k: v for k, v in config.items() if not k.startswith("_") and k != "transformers_version"}
        return parameters_fingerprint(frozen, f"{self.depth}:{json.dumps(settings, sort_keys=True, default=str)}")

    def _passes_on(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrap(_hidden(args, kwargs))


def _hidden(args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden states that a layer was called with."""
    return args[0] if args else kwargs["hidden_states"]


def find_trunk(model: nn.Module) -> FrozenTrunk | None:
    """The frozen lower layers of a model; `None` where its first layer is trained, or no list of layers is found."""
    layers = decoder_layers(model)
    if layers is None:
        return None
    trains = [any(parameter.requires_grad for parameter in layer.parameters()) for layer in layers]
    depth = trains.index(True) if True in trains else len(layers)
    return FrozenTrunk(model, layers, depth) if depth else None


def decoder_layers(model: nn.Module) -> nn.ModuleList | None:
    """The list of decoder layers of a causal LM; `None` where its backbone has none of that length."""
    number = base_causal_lm(model).config.get_text_config().num_hidden_layers
    embeddings, inner = base_causal_lm(model).get_input_embeddings(), backbone(model)
    for part in inner.modules():
        # In a multimodal model, the language model, not the other towers: some of those have no embeddings to name.
        with contextlib.suppress(NotImplementedError):
            if isinstance(part, PreTrainedModel) and part.get_input_embeddings() is embeddings:
                inner = part
    return next((m for m in inner.modules() if isinstance(m, nn.ModuleList) and len(m) == number), None)
