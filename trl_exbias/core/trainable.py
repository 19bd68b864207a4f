"""Which parts of a model are trained, by name."""

from fnmatch import fnmatchcase

from torch import nn

from .errors import UsageError


def freeze_all_but(model: nn.Module, patterns: list[str]) -> list[str]:
    """
    Freezes every parameter that is in none of the named modules.

    Args:
        model (`nn.Module`): Changed in place.
        patterns (`list[str]`): Names of modules as `model.named_modules()` gives them, with shell wildcards:
            `"model.layers.29"` and `"model.norm"` are the last block and the final norm of SmolLM2-135M (Pozzi 2025, §6 trains
            those two).

    Returns:
        `list[str]`: Names of the parameters that are trained.

    Raises:
        ValueError: if a pattern names no module with parameters.
    """
    modules = {name for name, module in model.named_modules() if name and any(True for _ in module.parameters())}
    chosen = {pattern: [name for name in modules if fnmatchcase(name, pattern)] for pattern in patterns}
    missing = [pattern for pattern, names in chosen.items() if not names]
    if missing:
        some = ", ".join(sorted(modules, key=lambda name: (name.count("."), name))[:12])
        raise UsageError(
            f"`trainable_modules` names no module of this model: {', '.join(map(repr, missing))}. Its modules are {some}, …"
        )
    trained = []
    prefixes = tuple(f"{name}." for names in chosen.values() for name in names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes))
        if parameter.requires_grad:
            trained.append(name)
    return trained
