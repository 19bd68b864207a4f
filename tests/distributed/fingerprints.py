"""Run by four processes: a model has the fingerprint of the whole one, however it is sharded."""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from trl_exbias.core.fingerprint import weights_fingerprint
from trl_exbias.core.sharding import in_forward, local_part

from ..tiny import tiny_model


def main() -> None:
    flat = init_device_mesh("cpu", (4,))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    whole = weights_fingerprint(tiny_model())
    for mesh in (flat, square):
        model = tiny_model()
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert weights_fingerprint(model) == whole
        in_forward(model, lambda: None)
        assert weights_fingerprint(model) == whole, "also with the root whole"
    # Rows: fewer than processes, as many, a few more, many; and two that no sharding of ours makes.
    for shape in ((3,), (4, 2), (5, 3), (259, 32)):
        tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        layouts = [
            (flat, [Shard(0)]),
            (flat, [Replicate()]),
            (square, [Replicate(), Shard(0)]),
            (square, [Shard(0)] * 2),
        ]
        if len(shape) > 1:
            layouts.append((square, [Shard(0), Shard(1)]))
        expected = fingerprint_of(tensor)
        for mesh, placements in layouts:
            assert fingerprint_of(distribute_tensor(tensor, mesh, placements)) == expected, (shape, placements)
    part, _, group = local_part(distribute_tensor(torch.zeros(3), flat, [Shard(0)]))
    assert len(part) == (0 if torch.distributed.get_rank() == 3 else 1) and group is not None


def fingerprint_of(tensor: torch.Tensor) -> str:
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(tensor)
    return weights_fingerprint(module)


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    main()
    torch.distributed.destroy_process_group()
