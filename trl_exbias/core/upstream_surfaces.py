"""The list of what we use of TRL, transformers, accelerate, torch and DeepSpeed besides their public interfaces.

`tests/test_upstream.py` compares it with what is installed, and our sources with it.
"""

from .surfaces import (
    Abstract,
    Attributes,
    Called,
    Equals,
    Mentions,
    Operator,
    Overridden,
    PassedOn,
    Surface,
    check_releases,
)
from .upstream import CHECKPOINT_PREFIX, FUSED_HEAD_TOKENS, LOADED_BY_ONE, TRAINING_ARGS_FILE


#: The oldest and the newest release of each package that the tests were run with; see `docs/install.md`.
TESTED = {"trl": ("1.15", "1.16"), "transformers": ("5.6", "5.24")}

_UPSTREAM, _LOOP, _JOINT, _PLANNED = "core/upstream.py", "loop/iterative.py", "loop/joint.py", "loop/planned.py"
_PREPARATION, _CACHE = "loop/preparation.py", "rollouts/local/cache.py"
_SFT, _LAYER = "trl:SFTTrainer", "transformers.cache_utils:CacheLayerMixin"

SURFACES: tuple[Surface, ...] = (
    # TRL's functions and constants
    Called("trl.data_utils:_tokenize", _UPSTREAM, "processing_class input chat_template tools"),
    Called("trl.data_utils:common_prefix_length", _UPSTREAM, "ids other_ids"),
    Called("trl:get_training_chat_template", _UPSTREAM, "processing_class"),
    Called("trl.chat_template_utils:has_generation_markers", _UPSTREAM, "chat_template"),
    Called("trl.trainer.utils:add_fused_lm_head", _UPSTREAM, "model outputs"),
    Called("trl.trainer.utils:maybe_gather_lm_head_ctx", _UPSTREAM),
    Equals("trl.trainer.utils:_CHUNKED_LOGPROB_CHUNK_SIZE", _UPSTREAM, value=FUSED_HEAD_TOKENS),
    Surface("trl.kernels.chunked_logprob:TOKEN_CHUNK_SIZE", _UPSTREAM),
    PassedOn("trl.models.utils:_ForwardRedirection.__call__", _UPSTREAM, "wrapper_module original_module method"),
    Called("trl.models:prepare_deepspeed", _UPSTREAM, "model accelerator"),
    # SFTTrainer: what we override
    Overridden(
        f"{_SFT}._prepare_dataset", _PREPARATION, "dataset processing_class args packing formatting_func dataset_name"
    ),
    PassedOn(f"{_SFT}.evaluate", _PREPARATION, "eval_dataset"),
    Overridden(f"{_SFT}._set_signature_columns_if_needed", _LOOP),
    Overridden(f"{_SFT}._save_checkpoint", "loop/saving.py", "model trial"),
    Overridden(f"{_SFT}.create_model_card", _LOOP, "model_name dataset_name tags"),
    Overridden(f"{_SFT}.log", _JOINT, "logs start_time"),
    Overridden(f"{_SFT}.compute_loss", _JOINT, "model inputs return_outputs num_items_in_batch"),
    Overridden("transformers:Trainer.training_step", _JOINT, "model inputs num_items_in_batch"),
    # Trainer: what we override, and SFTTrainer does not
    PassedOn(f"{_SFT}.train", _LOOP, "resume_from_checkpoint"),
    PassedOn(
        f"{_SFT}._run_epoch", _LOOP, "model epoch train_dataloader trial steps_in_epoch num_update_steps_per_epoch"
    ),
    Overridden(f"{_SFT}.save_model", "loop/saving.py", "output_dir _internal_call"),
    Overridden(f"{_SFT}._save", "loop/saving.py", "output_dir state_dict"),
    Overridden(f"{_SFT}._get_train_sampler", _LOOP, "train_dataset"),
    Overridden(f"{_SFT}._get_num_items_in_batch", _JOINT, "batch_samples device"),
    Overridden(f"{_SFT}._prepare_input", _JOINT, "data"),
    Overridden(f"{_SFT}.set_initial_training_values", _PLANNED, "args dataloader", returns=7),
    Overridden(
        f"{_SFT}._init_training_state",
        _PLANNED,
        "max_steps num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial",
        returns=2,
    ),
    Overridden(f"{_SFT}._load_optimizer_and_scheduler", _PLANNED, "checkpoint"),
    Overridden(f"{_SFT}.create_scheduler", _PLANNED, "num_training_steps optimizer"),
    Overridden(f"{_SFT}.get_batch_samples", _JOINT, "epoch_iterator num_batches device"),
    PassedOn(f"{_SFT}.evaluation_loop", _JOINT, "dataloader description prediction_loss_only"),
    # Trainer: what we call
    Called(f"{_SFT}._get_dataloader", _LOOP, "dataset description batch_size sampler_fn is_training"),
    Called(f"{_SFT}._get_output_dir", "loop/saving.py", "trial"),
    Called(f"{_SFT}._load_from_checkpoint", _LOOP, "resume_from_checkpoint model"),
    Called(f"{_SFT}.get_total_train_batch_size", _PLANNED, "args"),
    # The trainers' attributes
    Attributes(_SFT, _JOINT, "_metrics _total_train_tokens _tp_size _tokenizer aux_loss_enabled router_aux_loss_coef"),
    Attributes(_SFT, _JOINT, "model_accepts_loss_kwargs current_gradient_accumulation_steps"),
    Attributes(_SFT, _PREPARATION, "_formatting_func completion_only_loss chat_template"),
    Attributes(_SFT, _LOOP, "_signature_columns _train_batch_size callback_handler control"),
    Attributes(_SFT, "loop/saving.py", "model_wrapped"),
    Attributes(_SFT, _PLANNED, "_created_lr_scheduler lr_scheduler"),
    Attributes("transformers:Trainer", _LOOP, "is_in_train"),
    Attributes(_SFT, "methods/rac.py", "_tag_names _name _paper"),
    Attributes("trl:SFTConfig", "loop/config.py", "_VALID_DICT_FIELDS"),
    Attributes("transformers.trainer_callback:CallbackHandler", _LOOP, "callbacks train_dataloader"),
    # transformers' other parts
    Attributes("transformers:PretrainedConfig", _UPSTREAM, "_attn_implementation name_or_path"),
    Mentions("transformers.configuration_utils", _UPSTREAM, "_commit_hash"),  # left out of what is saved
    Attributes("transformers:PreTrainedModel", _UPSTREAM, "_supports_sdpa _is_stateful"),
    PassedOn("transformers:PreTrainedModel._from_config", _UPSTREAM, "config"),
    Surface("transformers.models.rwkv.modeling_rwkv:RwkvModel._rescale_layers", _UPSTREAM),
    Surface("transformers.modeling_layers:GradientCheckpointingLayer", _UPSTREAM),
    Attributes("transformers.trainer_pt_utils:LengthGroupedSampler", "loop/grouped.py", "generator"),
    Attributes("transformers.integrations:TensorBoardCallback", _UPSTREAM, "tb_writer"),
    Called("transformers.trainer_utils:has_length", _UPSTREAM, "dataset"),
    Called(
        "transformers.trainer_utils:rotate_checkpoints",
        _UPSTREAM,
        "output_dir save_total_limit best_model_checkpoint use_mtime",
    ),
    Called(
        "transformers.utils.peft_utils:find_adapter_config_file", _UPSTREAM, "model_id revision token local_files_only"
    ),
    Called("transformers.utils:cached_file", _UPSTREAM, "path_or_repo_id filename revision token local_files_only"),
    Called("transformers.integrations.deepspeed:set_hf_deepspeed_config", _UPSTREAM, "hf_deepspeed_config_obj"),
    Called("transformers.integrations.deepspeed:unset_hf_deepspeed_config", _UPSTREAM),
    Equals("transformers.trainer_utils:PREFIX_CHECKPOINT_DIR", _UPSTREAM, value=CHECKPOINT_PREFIX),
    Equals("transformers.trainer:TRAINING_ARGS_NAME", _UPSTREAM, value=TRAINING_ARGS_FILE),
    Abstract(
        _LAYER, _CACHE, "lazy_initialization update get_mask_sizes get_seq_length get_max_length get_max_cache_shape"
    ),
    Overridden(f"{_LAYER}.lazy_initialization", _CACHE, "key_states value_states"),
    PassedOn(f"{_LAYER}.update", _CACHE, "key_states value_states"),
    Overridden(f"{_LAYER}.get_mask_sizes", _CACHE, "query_length"),
    Overridden(f"{_LAYER}.get_seq_length", _CACHE),
    PassedOn("transformers.cache_utils:Cache.__init__", _CACHE, "layers"),
    Overridden("transformers.cache_utils:Cache.get_query_offset", _CACHE, "layer_idx", may_be_absent=True),
    # accelerate and torch
    Called("accelerate.utils.fsdp_utils:fsdp2_prepare_model", _UPSTREAM, "accelerator model"),
    Attributes("accelerate:Accelerator", _UPSTREAM, "_dataloaders"),
    Called("accelerate.commands.launch:launch_command_parser", _UPSTREAM),
    Called("accelerate.commands.launch:launch_command", _UPSTREAM, "args"),
    Mentions("accelerate.utils.fsdp_utils", _UPSTREAM, LOADED_BY_ONE),
    Attributes("torch.optim.lr_scheduler:LRScheduler", _UPSTREAM, "_last_lr"),
    Attributes("torch:UntypedStorage", _UPSTREAM, "_cdata"),
    Operator("torch:ops.mkldnn._reorder_linear_weight", _UPSTREAM, "self batch_size"),
    Operator("torch:ops.mkldnn._linear_pointwise", _UPSTREAM, "X W B attr scalars algorithm"),
    Attributes("torch._ops:OpOverload", "core/surfaces.py", "_schema"),
    Attributes("torch:Tensor", "core/laid_out_weights.py", "_version"),
    Equals(
        "torch.distributed.algorithms._checkpoint.checkpoint_wrapper:_CHECKPOINT_WRAPPED_MODULE",
        _UPSTREAM,
        value="_checkpoint_wrapped_module",
    ),
    Attributes("torch._dynamo.eval_frame:OptimizedModule", _UPSTREAM, "_orig_mod"),
    # DeepSpeed
    Mentions(
        "deepspeed.runtime.zero.partition_parameters",
        _UPSTREAM,
        "ds_tensor ds_numel ds_shape ds_status ds_process_group GatheredParameters",
    ),
)


def check_installed() -> None:
    """Compares the installed releases with the tested ones and, if one differs, with the list; see `check_releases`."""
    check_releases(TESTED, SURFACES)
