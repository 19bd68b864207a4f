"""What the processes of a distributed test run: one short training of a tiny model, and a record of what it did.

python -m tests.distributed.train METHOD OUTPUT_DIR PER_DEVICE_BATCH_SIZE ENGINE OPTIONS      # OPTIONS: settings as JSON
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig
from torch._dynamo.utils import counters
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback

from trl_exbias import (
    BASHConfig,
    BASHTrainer,
    DaDDaggerConfig,
    DaDDaggerTrainer,
    RACConfig,
    RACTrainer,
    ScheduledSamplingConfig,
    ScheduledSamplingTrainer,
    SPINConfig,
    SPINTrainer,
    VerifiedAnswersConfig,
    VerifiedAnswersTrainer,
)
from trl_exbias.core.fingerprint import weights_fingerprint
from trl_exbias.core.leaving import leave
from trl_exbias.core.modeling import backbone
from trl_exbias.core.sharding import in_forward

from ..families import family
from ..loop.runs import config, logged, trainer
from ..tiny import conversations, tiny_model


# Two documents of eight trajectories each: accelerate fills up an uneven last batch with rows from the start.
TEXT = ["The fox went out on a chilly night, and ", "prayed to the moon to give him light on."]
DAD = {"context_length": 8, "rollout_length": 4, "num_iterations": 2, "num_train_epochs": 1}
METHODS = {
    "bash": (BASHTrainer, BASHConfig, {"beta": 0.3}),
    "bash-recurrent": (BASHTrainer, BASHConfig, {"beta": 0.3}),
    # Two shards: one for each of two processes.
    "bash-vllm": (BASHTrainer, BASHConfig, {"beta": 0.3, "rollout_engine": "vllm"}),
    "rac": (RACTrainer, RACConfig, {"max_new_tokens": 12}),
    "spin": (SPINTrainer, SPINConfig, {"max_new_tokens": 12, "num_train_epochs": 2}),
    "bash-gated": (
        BASHTrainer,
        BASHConfig,
        {"beta": 0.4, "gate": "relative", "gate_template": "{{ prompt }} (answer: {{ reference }})"},
    ),
    "rac-soft": (
        RACTrainer,
        RACConfig,
        {
            "soft_labels": True,
            "teacher_top_k": 16,
            "divergence": "reverse_kl",
            "max_new_tokens": 8,
            "num_train_epochs": 2,
        },
    ),
    # Whole distributions, with the head that they were read with.
    "rac-soft-whole": (RACTrainer, RACConfig, {"soft_labels": True, "max_new_tokens": 8, "num_iterations": 2}),
    # The same of a model that no process has trained.
    "rac-soft-average": (
        RACTrainer,
        RACConfig,
        {"soft_labels": True, "self_teacher": "average", "max_new_tokens": 8, "num_iterations": 2},
    ),
    "verified": (
        VerifiedAnswersTrainer,
        VerifiedAnswersConfig,
        {"verifier": "none", "num_samples": 3, "num_kept": 2, "max_new_tokens": 8},
    ),
    "scheduled-sampling": (ScheduledSamplingTrainer, ScheduledSamplingConfig, {"beta": 0.3}),
    "dad-dagger": (DaDDaggerTrainer, DaDDaggerConfig, DAD),
    "dad-dagger-gated": (DaDDaggerTrainer, DaDDaggerConfig, DAD | {"gate": "relative", "divergence": "jensen_shannon"}),
    "dad-dagger-frozen": (
        DaDDaggerTrainer,
        DaDDaggerConfig,
        DAD | {"trainable_modules": ["model.layers.1", "model.norm"]},
    ),
    "dad-dagger-served": (DaDDaggerTrainer, DaDDaggerConfig, DAD | {"teacher_top_k": 5}),
    "dad-dagger-on-the-fly": (DaDDaggerTrainer, DaDDaggerConfig, DAD | {"cache_teacher": False}),
}
LORA, QLORA = "-lora", "-qlora"
# Folders of a run, made before its processes start.
BASE, TEACHER = "base", "teacher"


def base_model(method: str):
    """What a method is tried on; DaD-DAgger with tied embeddings, which are one parameter in two modules."""
    if method.startswith("bash-vllm"):
        return tiny_model("mistral", head_dim=32)
    if method == "bash-recurrent":
        return family("recurrent_gemma")
    return tiny_model(tie_word_embeddings=method.startswith("dad-dagger"))


def engine_options(engine: str) -> dict:
    """What makes a trainer use an engine; for FSDP2, called before anything of accelerate is set up."""
    if engine == "fsdp2-on-cpus":
        return {"fsdp": True, "fsdp_config": {}, "ddp_backend": "gloo"}
    if engine == "fsdp2":
        # accelerate 1.15 leaves FSDP out where processes compute on CPUs (`AcceleratorState.__init__` in `state.py` asks
        # for MULTI_GPU or the like), although torch's FSDP2 has gloo. So the processes say that they are GPUs'; everything
        # else is the same: the device, the backend, and all of FSDP.
        PartialState(cpu=True, backend="gloo")
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return {"fsdp": True, "fsdp_config": {}, "accelerator_config": {"use_configured_state": True}}
    if engine.startswith("zero"):
        return {"deepspeed": deepspeed_config(int(engine[4]), offload=engine.endswith("-offload"))}
    return {"ddp_backend": "gloo"}


def deepspeed_config(stage: int, offload: bool) -> dict:
    """ZeRO; without offloading, with torch's optimizer: DeepSpeed's own for CPUs is compiled for a minute."""
    import deepspeed.ops

    # Compiled at the first collective operation otherwise.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    to_cpu = {"device": "cpu", "pin_memory": False}
    return {
        "zero_optimization": {
            "stage": stage,
            "stage3_gather_16bit_weights_on_model_save": True,
            # Every weight is partitioned: small ones would otherwise stay whole, and a tiny model has no others.
            "stage3_param_persistence_threshold": 0,
            **({"offload_optimizer": to_cpu, "offload_param": to_cpu} if offload else {}),
        },
        "zero_force_ds_cpu_optimizer": offload,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": "auto"},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }


def engine_in_use(done) -> str:
    if isinstance(done.model_wrapped, FSDPModule):
        return "FSDPModule"
    return type(getattr(done.model_wrapped, "_orig_mod", done.model_wrapped)).__name__


def is_sharded(model) -> bool:
    return all(hasattr(parameter, "ds_tensor") or isinstance(parameter, DTensor) for parameter in model.parameters())


def optimizer_in_use(done) -> str:
    optimizer = done.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return type(optimizer).__name__


class Watch(TrainerCallback):
    """What can be seen during training alone: whether the teacher is sharded, and how often a layer is run in it."""

    def __init__(self, done):
        self.done = done
        self.teacher_sharded = False
        self.layer_calls = 0
        self.float_dtypes: set[str] = set()
        prepare = done._prepare_inputs
        done._prepare_inputs = lambda inputs: self._look(prepare(inputs))
        if not done.args.torch_compile:
            layer = backbone(done.model).layers[0]
            layer = getattr(layer, "mlp", None) or layer.mlp_block
            layer.register_forward_pre_hook(self._count)

    def _look(self, inputs: dict) -> dict:
        tensors = [*inputs.values(), *inputs.get("soft_labels", {}).values()]
        self.float_dtypes |= {str(t.dtype) for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point()}
        return inputs

    def _count(self, layer, inputs) -> None:
        self.layer_calls += layer.training and torch.is_grad_enabled()  # in a trial there is no gradient

    def on_step_end(self, args, state, control, **kwargs):
        teacher = getattr(self.done, "_resident_teacher", None)
        # Its last unit stays whole between two steps.
        self.teacher_sharded |= teacher is not None and is_sharded(backbone(teacher).layers)


def main(method: str, output_dir: str, batch_size: int, engine: str, options: dict) -> None:
    """Trains, and writes losses, weights and the number of processes next to the run."""
    quantized, lora = method.endswith(QLORA), method.endswith((LORA, QLORA))
    method = method.removesuffix(QLORA).removesuffix(LORA)
    trainer_class, config_class, own_options = METHODS[method]
    common = {"per_device_train_batch_size": batch_size, "learning_rate": 1e-3}
    options = {**common, **own_options, **engine_options(engine), **options}
    extra = {}
    if lora:
        # Large enough steps for the losses of an adapter to tell the runs apart.
        options["learning_rate"] = 1e-2
        modules_to_save = options.pop("modules_to_save", None)
        extra["peft_config"] = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], modules_to_save=modules_to_save)
    if method.startswith("dad-dagger"):
        data = Dataset.from_list([{"text": text} for text in TEXT])
        if "teacher_server_base_url" not in options:
            # By name: under ZeRO-3 it is then loaded in slices, or must not be.
            extra["teacher_model"] = str(Path(output_dir, TEACHER))
    else:
        data = conversations(128 if method == "bash-vllm" else 16)
    if quantized:
        # FSDP2 shards what has a floating type; there is nothing but its bits in it.
        nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": torch.float32}
        model = AutoModelForCausalLM.from_pretrained(
            Path(output_dir, BASE), dtype=torch.float32, quantization_config=BitsAndBytesConfig(**nf4)
        )
    else:
        # By name where an adapter is to be served over it.
        model = str(Path(output_dir, BASE)) if method == "bash-vllm" else base_model(method)
    done = trainer(trainer_class, config(config_class, output_dir, **options), data, model, **extra)
    watch = Watch(done)
    done.add_callback(watch)
    done.train(resume_from_checkpoint=done.args.resume_from_checkpoint)
    # With FSDP2's root whole, as it is after a rollout.
    in_forward(done.model, lambda: None)
    fingerprint = weights_fingerprint(done.model)
    done.save_model(str(Path(output_dir) / "model"))
    if done.is_world_process_zero():
        record = {
            "world_size": done.accelerator.num_processes,
            "engine": engine_in_use(done),
            "sharded": is_sharded(done.model),
            "teacher_sharded": watch.teacher_sharded,
            "compiled_graphs": counters["stats"]["unique_graphs"],
            "optimizer": optimizer_in_use(done),
            "fingerprint": fingerprint,
            "losses": logged(done, "loss"),
            "layer_calls": watch.layer_calls,
            "float_input_dtypes": sorted(watch.float_dtypes),
        }
        (Path(output_dir) / "record.json").write_text(json.dumps(record))


if __name__ == "__main__":
    torch.manual_seed(0)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], json.loads(sys.argv[5]))
    leave(0)
