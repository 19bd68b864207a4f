"""What is wrong with settings of DaD-DAgger, as one line each: what was given, what is allowed, what to do."""

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ...core.divergences import divergence_problems
from ...core.gates import gate_problems
from ...loop.config import _number
from .several_teachers import by_name


if TYPE_CHECKING:
    from .config import DaDDaggerConfig


def setting_problems(args: "DaDDaggerConfig") -> list[str]:
    """Every invalid value and combination of the method's own settings."""
    return [
        *_range_problems(args),
        *_objective_problems(args),
        *divergence_problems(args.divergence, args.jsd_beta, None if args.alpha < 1 else "alpha=1"),
        *gate_problems(args.gate, args.gate_epsilon),
        *_label_problems(args),
        *_server_problems(args),
        *_several_problems(args),
    ]


def _range_problems(args: "DaDDaggerConfig") -> list[str]:
    return [
        f"`{name}` must be {allowed}, got {getattr(args, name)!r}."
        for name, is_valid, allowed in (
            ("alpha", 0 <= _number(args.alpha) <= 1, "in [0, 1]"),
            ("context_length", _number(args.context_length) >= 1, "at least 1"),
            ("rollout_length", _number(args.rollout_length) >= 1, "at least 1"),
            ("stride", args.stride is None or _number(args.stride) >= 1, "at least 1, or None"),
            ("aggregate", args.rollouts_in_use is not None, "'all', 'last' or a number of at least 1"),
            ("kd_temperature", _number(args.kd_temperature) > 0, "above 0"),
            (
                "teacher_top_k",
                args.teacher_top_k is None or _number(args.teacher_top_k) >= 1,
                "at least 1, or None",
            ),
        )
        if not is_valid
    ]


def _objective_problems(args: "DaDDaggerConfig") -> list[str]:
    """Settings of the loop that the method's objective leaves no room for."""
    found = []
    if args.sft_weight != 1 or args.rollout_weight != 1:
        found.append(
            "`sft_weight` and `rollout_weight` must be 1: data and rollouts are one set, whose loss is one mean. "
            "`alpha` weighs hard against soft labels; `aggregate` says which rollouts count."
        )
    if args.loss_type != "nll":
        found.append(f"`loss_type` must be 'nll', got {args.loss_type!r}: the hard labels' loss is Eq. 5's.")
    if args.stop_strings is not None:
        found.append(
            "`stop_strings` ends responses; a rollout of DaD-DAgger is a horizon of `rollout_length` tokens. Leave it out."
        )
    return found


def _label_problems(args: "DaDDaggerConfig") -> list[str]:
    """What a gate and the top k ask of the other settings of labels."""
    found = []
    if args.gate is not None and not 0 < _number(args.alpha) < 1:
        found.append(
            f"`gate` weighs hard labels by a teacher's distribution, and `alpha={args.alpha}` has only one of the two. Set "
            "`alpha` between 0 and 1, or leave `gate` out."
        )
    if args.gate is not None and args.teacher_top_k is not None:
        found.append(
            "`gate` needs the whole distribution, of which `teacher_top_k` keeps a part. Leave one of them out."
        )
    if args.teacher_top_k is not None and not args.cache_teacher:
        found.append("`teacher_top_k` is for labels on disk: set `cache_teacher=True`, or leave `teacher_top_k` out.")
    return found


def _server_problems(args: "DaDDaggerConfig") -> list[str]:
    """What a teacher on a server asks of the other settings."""
    url = args.teacher_server_base_url
    if url is None:
        return []
    found, address = [], urlsplit(str(url))
    if address.scheme not in ("http", "https") or not address.hostname or address.query or address.fragment:
        found.append(f"`teacher_server_base_url` must be an address such as http://127.0.0.1:8000, got {url!r}.")
    if address.username or address.password:
        found = [
            "`teacher_server_base_url` holds a password; put the server's key into the environment variable TEACHER_API_KEY."
        ]
    server = "with `teacher_server_base_url`: a server gives"
    if args.teacher_top_k is None:
        found.append(
            f"`teacher_top_k` must be set {server} its k most probable tokens. `vllm serve` gives 20, and more with "
            "`--max-logprobs`."
        )
    if args.kd_temperature != 1:
        found.append(f"`kd_temperature` must be 1 {server} probabilities at temperature 1, got {args.kd_temperature}.")
    if not args.cache_teacher:
        found.append(f"`cache_teacher` must be True {server} labels that are kept on disk.")
    if args.teacher_model_init_kwargs:
        found.append(
            "`teacher_model_init_kwargs` loads a teacher, and `teacher_server_base_url` has one. Leave one of them out."
        )
    return found


def _several_problems(args: "DaDDaggerConfig") -> list[str]:
    """What several teachers ask of the other settings."""
    if args.teachers is None:
        return []
    found = []
    try:
        by_name(args.teachers)
    except ValueError as error:
        found.append(str(error))
    found += [
        f"`teachers` are several, and `{name}` is one. Leave one of them out."
        for name in ("teacher_model_name_or_path", "teacher_server_base_url")
        if getattr(args, name) is not None
    ]
    if args.teacher_top_k is None or not args.cache_teacher:
        found.append(
            "`teachers` are loaded one after the other, and each one's k most probable tokens are kept: set `teacher_top_k` and "
            "`cache_teacher=True`."
        )
    return found
