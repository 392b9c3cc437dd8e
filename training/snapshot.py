"""The copy of weights and optimizer state that a save is written from, while training goes on changing them.

It lies in one buffer that is allocated and touched once, at the start: the first write to fresh memory costs more
than the copy. On a GPU the buffer is pinned, which is what makes the copy run at the bus's speed. The tensors lie
in it in the order of the files, so that each file is its header and one slice of the buffer. A tensor that is shared
out among the ranks is put together on the device, one after another, with `take_part` called by the ranks that have
no buffer."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers.core_model_loading import revert_weight_conversion

from training.manifest import OPTIMIZER, WEIGHTS
from training.process_group import my_rank
from training.strategy import whole
from training.whole_file import pieces

# Tensors below this many bytes are gathered on the device and copied together: GPT-2 has some hundred biases and
# AdamW a step count for every parameter.
SMALL = 1 << 16

TYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class TensorFile:
    """Tensors that will be one safetensors file."""

    name: str
    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Placed:
    """Where a tensor lies within its file's data."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class HostFile:
    """A safetensors file in host memory."""

    name: str
    header: bytes
    data: memoryview
    placed: Sequence[Placed]


class HostBuffer:
    """Memory for one copy of the state, used again for every save."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def reserve(self, size: int) -> None:
        """Have room for so many bytes, each page already touched."""
        if size <= len(self._bytes):
            return
        # The old memory first: both at once may not fit.
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._bytes = torch.empty(size, dtype=torch.uint8, pin_memory=self._device.type == "cuda").fill_(0)

    @torch.no_grad()
    def capture(self, files: Sequence[TensorFile]) -> list[HostFile]:
        """Copy the tensors; returns when they may be changed again. What was captured before is overwritten."""
        layouts = [_layout(file) for file in files]
        ends = [0]
        for layout in layouts:
            size = layout[-1].end if layout else 0
            ends.append(ends[-1] + size + -size % 8)
        self.reserve(ends[-1])
        for file, layout, begin in zip(files, layouts, ends, strict=False):
            self._copy(file.tensors, layout, begin)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        memory = self._bytes.numpy().data
        return [
            HostFile(
                file.name,
                _header(layout, file.metadata),
                memory[begin : begin + (layout[-1].end if layout else 0)],
                layout,
            )
            for file, layout, begin in zip(files, layouts, ends, strict=False)
        ]

    def _copy(self, tensors: Mapping[str, torch.Tensor], layout: Sequence[Placed], begin: int) -> None:
        def kind(placed: Placed) -> Any:
            return (placed.end - placed.begin < SMALL, placed.dtype, tensors[placed.name].device)

        for (small, dtype, _), group in groupby(layout, kind):
            run = list(group)
            for part in [run] if small else [[placed] for placed in run]:
                target = self._bytes[begin + part[0].begin : begin + part[-1].end].view(dtype)
                sources = [whole(tensors[placed.name].detach()) for placed in part]
                if len(sources) == 1:
                    target.view(sources[0].shape).copy_(sources[0], non_blocking=True)
                else:
                    target.copy_(torch.cat([source.reshape(-1) for source in sources]), non_blocking=True)


@torch.no_grad()
def take_part(files: Sequence[TensorFile]) -> None:
    """Give this rank's slices to the rank that captures the same files."""
    for file in files:
        for placed in _layout(file):
            whole(file.tensors[placed.name].detach())


def _layout(file: TensorFile) -> list[Placed]:
    """Where each tensor goes: densely, as the format wants it, those with large elements first, so that all are
    aligned, and within these the small ones together."""

    def size(name: str) -> int:
        return file.tensors[name].numel() * file.tensors[name].element_size()

    def place(name: str) -> tuple[Any, ...]:
        tensor = file.tensors[name]
        return -tensor.element_size(), str(tensor.dtype), size(name) < SMALL, tensor.device.type, name

    layout, begin = [], 0
    for name in sorted(file.tensors, key=place):
        tensor = file.tensors[name]
        layout.append(Placed(name, tensor.dtype, tuple(tensor.shape), begin, begin + size(name)))
        begin += size(name)
    return layout


def _header(layout: Sequence[Placed], metadata: Mapping[str, str]) -> bytes:
    """The head of a safetensors file: its length, then JSON, padded to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    for placed in layout:
        entries[placed.name] = {
            "dtype": TYPE_NAMES[placed.dtype],
            "shape": list(placed.shape),
            "data_offsets": [placed.begin, placed.end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tensors_sha256(file: HostFile) -> str:
    """A hash over names, types, shapes and bytes of a file's tensors, in the order of their names."""
    digest = hashlib.sha256()
    for placed in sorted(file.placed, key=lambda placed: placed.name):
        head = f"{placed.name} {TYPE_NAMES[placed.dtype]} {list(placed.shape)}\n"
        digest.update(head.encode())
        for piece in pieces(file.data[placed.begin : placed.end]):
            digest.update(piece)
    return digest.hexdigest()


def model_file(model: Any) -> TensorFile:
    """The weights under the names by which `from_pretrained` looks for them, shared ones once."""
    tensors = _weights(model)
    if any(isinstance(tensor, DTensor) for tensor in tensors.values()) and not _only_renamed(model, tensors):
        tensors = _together_on_host(tensors)
    # Some families (mixtures of experts) lie in memory otherwise than in their files.
    tensors = revert_weight_conversion(model, tensors) if tensors else {}
    return TensorFile(WEIGHTS, tensors, {"format": "pt"})


def _only_renamed(model: Any, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the file's tensors are those in memory, whatever their names."""
    stand_ins = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()}
    converted = revert_weight_conversion(model, dict(stand_ins))
    return {id(tensor) for tensor in converted.values()} == {id(tensor) for tensor in stand_ins.values()}


def _together_on_host(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Whole tensors in host memory on rank 0, none on the others: what is cut up and joined on the devices would be
    whole on all of them."""
    first = my_rank() == 0
    gathered = {}
    for name, tensor in tensors.items():
        together = whole(tensor)
        if first:
            gathered[name] = together.cpu()
    return gathered


def _weights(model: Any) -> dict[str, torch.Tensor]:
    """By their names in memory, shared ones once."""
    tensors = dict(model.state_dict(keep_vars=True))
    for pattern in getattr(model, "_keys_to_ignore_on_save", None) or ():
        tensors.pop(pattern, None)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    holders: dict[Any, str] = {}
    for name in sorted(tensors, key=lambda name: (name in tied, name)):
        tensor = tensors[name]
        if holders.setdefault(_memory(tensor, name), name) != name:
            del tensors[name]
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _memory(tensor: torch.Tensor, name: str) -> Any:
    """Equal for tensors that are one. Of those that are shared out some rank may hold an empty slice, and all must see
    the same."""
    if isinstance(tensor, DTensor):
        return id(tensor)
    return (tensor.data_ptr(), tensor.shape, tensor.device) if tensor.numel() else name


def state_files(model: Any, optimizer: torch.optim.Optimizer) -> list[TensorFile]:
    """All that a checkpoint holds of them."""
    return [model_file(model), optimizer_file(optimizer)]


def optimizer_file(optimizer: torch.optim.Optimizer) -> TensorFile:
    """The optimizer's state: tensors as `<index of the parameter>.<name>`, the groups as JSON in the header."""
    state = optimizer.state_dict()
    tensors = {f"{index}.{name}": value for index, values in state["state"].items() for name, value in values.items()}
    metadata = {"optimizer": type(optimizer).__name__, "param_groups": json.dumps(state["param_groups"])}
    return TensorFile(OPTIMIZER, tensors, metadata)


def expected_bytes(model: Any, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of a copy of the state, also before the optimizer's first step: AdamW then holds two more values for
    each parameter, and a count of its steps."""
    weights = _weights(model).values()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = sum(2 * parameter.numel() * parameter.element_size() + 4 for parameter in parameters)
    return sum(tensor.numel() * tensor.element_size() for tensor in weights) + state + 16
