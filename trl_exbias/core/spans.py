"""How far a layer's attention reaches: everywhere, a window back, or to the start of its chunk."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import PretrainedConfig


@dataclass(frozen=True)
class Span:
    """
    Args:
        window (`int`, *optional*): A token sees this many tokens, itself included.
        chunk (`int`, *optional*): A token sees its own chunk of this many positions.
    """

    window: int | None = None
    chunk: int | None = None

    def covers(self, length: int) -> bool:
        """Whether nothing of a row of this length is cut off."""
        return all(limit is None or limit >= length for limit in (self.window, self.chunk))


def attention_spans(config: PretrainedConfig) -> dict[str, Span]:
    """
    The span of each type of layer, by the name that transformers' own masks have.

    Where all layers are alike there is one entry.
    """
    config = config.get_text_config()
    types = sorted(set(getattr(config, "layer_types", None) or ()))
    window, chunk = _window(config), attention_chunk(config)
    if not types:
        return {"": Span(window, chunk)}
    spans = {"sliding_attention": Span(window=window), "chunked_attention": Span(chunk=chunk)}
    return {name: spans.get(name, Span()) for name in types}


def attention_window(config: PretrainedConfig) -> int | None:
    """
    The shortest span, in tokens, that any layer's attention is limited to; `None` where every layer sees everything.

    A hand-made 4-D mask replaces the windowed mask that the model would build, so it is right only for rows that no
    window would cut, unless it has the windows itself.
    """
    config = config.get_text_config()
    windows = [_window(config), attention_chunk(config)]
    if has_own_windows(config):
        windows.append(getattr(config, "window_size", None))
    return min((window for window in windows if window), default=None)


def has_own_windows(config: PretrainedConfig) -> bool:
    """Whether layers cut a window out of any mask by themselves, by the index in a row (GPT-Neo)."""
    return "local" in (getattr(config.get_text_config(), "attention_layers", None) or ())


def attention_chunk(config: PretrainedConfig) -> int | None:
    """Tokens of a chunk that attention does not leave (Llama 4), counted from the start of a row; `None` without chunks."""
    return getattr(config.get_text_config(), "attention_chunk_size", None)


def _window(config: PretrainedConfig) -> int | None:
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None


@contextmanager
def spans_of(config: PretrainedConfig, tokens: int) -> Iterator[None]:
    """Every window and chunk of the model has `tokens` tokens in the block, where its forward reads the configuration."""
    config = config.get_text_config()
    before = {
        name: getattr(config, name)
        for name in ("sliding_window", "attention_chunk_size")
        if getattr(config, name, None) is not None
    }
    for name in before:
        setattr(config, name, tokens)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
