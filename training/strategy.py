"""What each of several ranks holds of the model, and how they add up their gradients.

`ddp`: every rank holds all weights, gradients and optimizer state; the gradients are summed in buckets while the
backward pass still runs, or all together after it. `fsdp` (PyTorch's FSDP2): every rank holds one slice of each tensor
along its first dimension, and a block's weights are whole only while that block computes. One rank alone needs neither.
"""

import socket
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from training.device import joined_by_nvlink
from training.errors import InputError
from training.model import build_model
from training.process_group import gather, rank_zero_first


class ExchangesAtEnd(nn.Module):
    """Data parallelism whose ranks exchange their gradients after the backward pass, by `exchange_gradients`."""

    def __init__(self, module: nn.Module, reduce_bfloat16: bool) -> None:
        """All ranks get the weights and buffers of rank 0."""
        super().__init__()
        self.module, self.reduce_bfloat16 = module, reduce_bfloat16
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), src=0)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.module(tokens)


def replicate(
    loss_of: nn.Module, device: torch.device, bucket_cap_mb: int, reduce_bfloat16: bool, overlap: bool
) -> nn.Module:
    """All ranks get the weights of rank 0, and the mean of all gradients in every step.

    Args:
        loss_of: a batch's loss, from `token_loss`.
        device: of this rank.
        bucket_cap_mb: MiB of gradients that are summed in one message, with `overlap`.
        reduce_bfloat16: round them to bfloat16 for the sum; weights and gradients stay float32 on every rank.
        overlap: exchange gradients while the backward pass still runs, by DDP.
    """
    if not overlap:
        return ExchangesAtEnd(loss_of, reduce_bfloat16)
    with warnings.catch_warnings():
        # torch 2.13 has a new name for broadcast_buffers, which releases before it do not know.
        warnings.filterwarnings("ignore", category=FutureWarning, message="`broadcast_buffers`")
        wrapped = DistributedDataParallel(
            loss_of,
            device_ids=[device] if device.type == "cuda" else None,
            bucket_cap_mb=bucket_cap_mb,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,
        )
    if reduce_bfloat16:
        wrapped.register_comm_hook(None, _reduce_in_bfloat16)
    return wrapped


def overlap_pays(choice: Literal["auto", "on", "off"], device: torch.device) -> bool:
    """Whether gradients are to be exchanged while the backward pass still runs: --ddp-overlap. All ranks call it, and
    get the same answer.

    `auto`: not where NVLink joins all ranks. There the exchange is short, and beside the backward pass it slows the
    matrix products, which want all of the GPU, by more than it takes alone (tests/benchmark_strategy.py).
    """
    if choice != "auto" or device.type != "cuda":
        return choice != "off"
    gpus = gather((socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid)))
    one_host = len({host for host, _ in gpus}) == 1
    return rank_zero_first(lambda: not (one_host and joined_by_nvlink([uuid for _, uuid in gpus])))


def _reduce_in_bfloat16(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """torch's own hook under another name: by that name DDP refuses it without NCCL, though gloo can do it too."""
    return bf16_compress_hook(group, bucket)


def shard(
    source: Any,
    architecture: dict[str, Any],
    device: torch.device,
    *,
    bfloat16: bool,
    reduce_bfloat16: bool,
    compiled: bool,
) -> Any:
    """The model with its tensors shared out among all ranks by FSDP, block by block; called by all of them.

    Only rank 0 ever holds it whole, in host memory, and hands each rank its slices, one tensor after another.

    Args:
        source: the whole model on rank 0; None on the others.
        architecture: its Hugging Face configuration, with `model_type`.
        device: of this rank.
        bfloat16: gather and compute in bfloat16; the slices that the optimizer changes stay float32.
        reduce_bfloat16: sum gradients in bfloat16, else in float32.
        compiled: compile each block by itself, between the gathering of its weights and their release.

    Raises:
        InputError: two blocks share a tensor.
    """
    with torch.device("meta"):
        model = build_model(architecture, None)
    check_ties(model)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bfloat16 else None,
        reduce_dtype=torch.bfloat16 if reduce_bfloat16 else torch.float32,
    )
    for block in blocks(model):
        if compiled:
            block.compile()
        fully_shard(block, mesh=mesh, mp_policy=policy)
    own = type(model)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    # That has put a class of its own in the place of the model's, by which transformers knows what its files look like.
    type(model).__name__, type(model).__module__ = own.__name__, own.__module__
    model.to_empty(device=device)
    _hand_out(source, model)
    # How names and tensors of its files differ from those in memory; it is known where they were read.
    conversions = rank_zero_first(lambda: getattr(source, "_weight_conversions", None))
    if conversions is not None:
        model._weight_conversions = conversions
    return model


@torch.no_grad()
def _hand_out(source: Any, model: Any) -> None:
    """Give each rank its slices of the weights of rank 0's `source`, and its buffers."""
    for name, parameter in model.named_parameters():
        given = torch.empty(parameter.shape, device=parameter.device) if source is None else source.get_parameter(name)
        mine = distribute_tensor(given.detach(), parameter.device_mesh, parameter.placements)
        parameter.to_local().copy_(mine.to_local())
    for name, buffer in model.named_buffers():
        if source is not None:
            buffer.copy_(source.get_buffer(name))
        dist.broadcast(buffer, src=0)


def blocks(model: Any) -> list[nn.Module]:
    """The repeated layers of a Hugging Face model, outermost ones, in order: those that it says must stay together
    (`_no_split_modules`), else the entries of its longest list of modules."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    named = [module for module in model.modules() if type(module).__name__ in names]
    inner = {id(part) for module in named for part in module.modules() if part is not module}
    if named:
        return [module for module in named if id(module) not in inner]
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=()))


def check_ties(model: Any) -> None:
    """Refuse a model in which a block shares a tensor with what is not in it: the tensor would come and go with each.
    An embedding that is the output matrix too lies outside all blocks.

    Raises:
        InputError: names both places of the tensor.
    """
    layers = {id(block) for block in blocks(model)}
    prefixes = [f"{name}." for name, module in model.named_modules() if id(module) in layers]
    places: dict[int, tuple[str, str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        block = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        first_block, first_name = places.setdefault(id(parameter), (block, name))
        if first_block != block:
            raise InputError(f"--strategy fsdp: {first_name} and {name} are one tensor; give --strategy ddp")


@torch.no_grad()
def exchange_gradients(loss_of: nn.Module) -> None:
    """The mean of all ranks' gradients, where the backward pass has left each rank its own: each where it lies, and all
    in one message."""
    if not isinstance(loss_of, ExchangesAtEnd):
        return
    parameters = [parameter for parameter in loss_of.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:  # another rank may have one
            parameter.grad = torch.zeros_like(parameter)
    gradients = [cast(torch.Tensor, parameter.grad) for parameter in parameters]
    sent = [gradient.bfloat16() for gradient in gradients] if loss_of.reduce_bfloat16 else gradients
    options = dist.AllreduceCoalescedOptions()
    group = cast(dist.ProcessGroup, dist.group.WORLD)
    averages = dist.get_backend() == "nccl"
    options.reduceOp = cast(dist.ReduceOp, dist.ReduceOp.AVG if averages else dist.ReduceOp.SUM)
    group.allreduce_coalesced(sent, options).wait()
    if sent is not gradients:
        torch._foreach_copy_(gradients, sent)
    if not averages:
        torch._foreach_div_(gradients, dist.get_world_size())


@contextmanager
def without_reduction(loss_of: nn.Module) -> Iterator[None]:
    """Forward and backward passes in here leave each rank's gradients to itself, to be added to those of the next."""
    if isinstance(loss_of, DistributedDataParallel):
        with loss_of.no_sync():
            yield
    elif (sharded := next(_sharded_modules(loss_of), None)) is not None:
        sharded.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            sharded.set_requires_gradient_sync(True)
    else:
        yield


def clip_gradients(parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale the gradients down to this norm where theirs is larger; their norm before, of all ranks' slices together:
    a float32 scalar."""
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def own_gradients_are_finite(loss_of: nn.Module, backward: Callable[[], None]) -> bool:
    """Whether the gradients that `backward` makes are finite on this rank, before any sum over the ranks.

    Every rank calls it: FSDP gathers weights. Each gradient is looked at as it comes, and none is kept.
    """
    finite: list[torch.Tensor] = []

    def look(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        finite.append(torch.isfinite(parameter.grad).all())
        parameter.grad = None

    hooks = [parameter.register_post_accumulate_grad_hook(look) for parameter in _whole_parameters(loss_of)]
    try:
        with without_reduction(loss_of):
            backward()
    finally:
        for hook in hooks:
            hook.remove()
    return all(bool(answer) for answer in finite)


def _whole_parameters(loss_of: nn.Module) -> list[torch.Tensor]:
    """The tensors that gradients are computed for. FSDP's are there once it has gathered them for the first time, and
    are the same at each later time."""
    sharded = list(_sharded_modules(loss_of))
    parameters: list[torch.Tensor] = [] if sharded else list(loss_of.parameters())
    for module in sharded:
        module.unshard()
        parameters += [parameter for parameter in module.parameters() if not isinstance(parameter, DTensor)]
        module.reshard()
    return parameters


def _sharded_modules(loss_of: nn.Module) -> Iterator[Any]:
    """The root first."""
    return (module for module in loss_of.modules() if isinstance(module, FSDPModule))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All slices of a tensor together; called by all ranks at the same place. One that no one shared out is itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sliced_like(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """This rank's slice of a whole tensor that belongs to a parameter which is shared out; others as they are, and so
    numbers, of which every rank has its own."""
    if not isinstance(parameter, DTensor) or value.ndim == 0:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
