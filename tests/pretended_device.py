"""A second device without a GPU: what the engine does there, and where it would wait for it.

A `There` is a tensor that says it lies on DEVICE; its numbers are in the CPU's memory, and what is
computed with them is computed there. So code that is written for a GPU takes the paths of a GPU,
gives the CPU's numbers bit for bit, and fails where it mixes devices. What a GPU has to be waited
for (a number read from it, or a shape that depends on its numbers) is counted.

torch calls a backend that is written in Python experimental; nothing outside the tests uses it.
"""

import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

DEVICE = torch.device("privateuseone:0")
READS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"}
SHAPED_BY_NUMBERS = {"nonzero", "masked_select", "bincount", "_unique2", "unique_consecutive"}
INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_"}


@dataclass
class Traffic:
    """What went between the two devices: one line for each, with the place in aisp/ it came from."""

    waits: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)

    def wait(self, what: str) -> None:
        self.waits.append(f"{what} at {_place()}")

    def upload(self, what: str) -> None:
        self.uploads.append(f"{what} at {_place()}")


_now = Traffic()
_active = False


class _Module(_DummyBackendModule):
    def is_available(self) -> bool:
        return _active  # elsewhere the machine has no accelerator, as before


def _register() -> None:
    if not hasattr(torch, "privateuseone"):  # once in a process
        _setup_privateuseone_for_python_backend(backend_module=_Module())


class There(Tensor):
    """A tensor on DEVICE; `here` are its numbers."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor):
        with torch.inference_mode(False):  # else no view of it could be taken outside
            own = {"strides": here.stride(), "storage_offset": here.storage_offset()}
            size = here.shape
            out = Tensor._make_wrapper_subclass(cls, size, dtype=here.dtype, device=DEVICE, **own)
        out.here = here
        return out

    def __repr__(self, **options) -> str:
        return f"There({self.here})"

    def tolist(self):
        _now.wait("tolist")
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Also what has no tensor of DEVICE among its arguments, but asks for one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


@contextmanager
def pretended_device():
    """While open, DEVICE exists; gives the `Traffic` with it.

    Generators of DEVICE draw the CPU's numbers.
    """
    global _now, _active
    _register()
    _now, _active = Traffic(), True
    generator = torch.Generator
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=DEVICE) comes by here
    try:
        with patch.object(torch, "Generator", lambda device="cpu": generator()), _Mode():
            yield _now
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        _active = False


def moved(module: nn.Module) -> nn.Module:
    """The same module with its parameters and buffers on DEVICE."""
    known: dict[Tensor, nn.Parameter] = {}  # tied weights stay tied
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                if p not in known:
                    known[p] = nn.Parameter(There(p.detach()), requires_grad=False)
                part._parameters[name] = known[p]
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = There(b)
    return module


def back(x):
    """On the CPU again, anything that holds tensors."""
    return tree_map_only(There, lambda t: t.here, x)


def _run(func, args, kwargs):
    name = func._schema.name.removeprefix("aten::")
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [isinstance(x, There) for x in tensors]
    asked = next((x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.device)), None)
    if asked is None and func in (torch.ops.aten.to.other, torch.ops.aten.type_as.default):
        asked = tensors[1].device
    stays = any(there) if asked is None else asked.type == DEVICE.type
    _note(name, args, tensors, there, asked)
    if asked is None and stays and not name.startswith(("copy_", *INDEXES)):
        strangers = [x for x, t in zip(tensors, there, strict=True) if not t and x.ndim]
        if strangers:
            raise RuntimeError(f"{name}: expected all tensors on {DEVICE}, one is on the CPU")
    cpu = torch.device("cpu")
    inner, named = back(tree_map_only(torch.device, lambda d: cpu, (args, kwargs)))
    out = func(*inner, **named)
    if not stays:
        return out
    # What is changed in place, or handed through, stays the tensor that it was.
    same = {id(x.here): x for x in tensors if isinstance(x, There)}
    return tree_map_only(Tensor, lambda x: same[id(x)] if id(x) in same else There(x), out)


def _note(name, args, tensors, there, asked) -> None:
    if asked is not None and tensors and there[0] != (asked.type == DEVICE.type):
        _now.wait(f"{name} to the CPU") if there[0] else _now.upload(name)
    elif name == "copy_" and there[0] != there[1]:
        _now.wait("copy_ to the CPU") if there[1] else _now.upload(name)
    elif name in INDEXES and any(there):
        for index in [x for x in args[1] if x is not None]:
            if not isinstance(index, There):
                _now.upload(f"{name} by an index of the CPU")
            elif index.dtype in (torch.bool, torch.uint8):
                _now.wait(f"{name} by a mask")
    elif name in READS | SHAPED_BY_NUMBERS and any(there):
        _now.wait(name)


def _place() -> str:
    """The innermost line of aisp/ that is being run."""
    ours = [f for f in traceback.extract_stack() if "/aisp/" in f.filename]
    return f"{ours[-1].filename.rsplit('/aisp/')[-1]}: {ours[-1].line}" if ours else "a test"
