"""Weights laid out once for the matrix products of decoding, on a CPU.

oneDNN, the library behind torch's products on a CPU, multiplies by a weight in blocks of its own
layout. `torch.nn.Linear` keeps the weight row by row, and so has it laid out anew at every product,
which costs most where few rows are multiplied: a decoding step. Here every linear layer of a model is
laid out once, by the operations that torch's compiler uses when it freezes a graph. The products are
the same, so tokens do not change; memory grows by the bytes of the linear layers.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# More than this is not kept twice: a large model should rather keep its memory.
MOST_BYTES = 1 << 30

_Products = dict[nn.Linear, Callable[[Tensor], Tensor]]
_packed: "WeakKeyDictionary[nn.Module, tuple[tuple[tuple[int, int], ...], _Products]]" = (
    WeakKeyDictionary()
)


def packed(model: PreTrainedModel) -> Callable[[], AbstractContextManager[None]]:
    """A context in which the linear layers of a model multiply by weights that are laid out once.

    Where it does not apply (see `obstacle_to_packing`), the context changes nothing.

    Returns:
        What opens the context, as often as wanted. Inputs then must need no gradients.
    """
    found = products(model)
    return partial(_in_place, found) if found else nullcontext


def products(model: PreTrainedModel) -> _Products:
    """The product of each linear layer, with its weight laid out; none where it does not apply.

    Laid out at the first call and kept as long as the model is; once more where a weight has changed
    since.
    """
    if obstacle_to_packing(model) is not None:
        return {}
    layers = _linear_layers(model)
    weights = [layer.weight for layer in layers]
    # Where a weight lies, and how often it was written to.
    content = tuple((w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights)
    known = _packed.get(model)
    if known is None or known[0] != content:
        known = _packed[model] = content, {layer: _product(layer) for layer in layers}
    return known[1]


def obstacle_to_packing(model: PreTrainedModel) -> str | None:
    """Why a model's products stay as they are; None where `packed` changes them."""
    layers = _linear_layers(model)
    weights = {layer.weight.data_ptr(): layer.weight for layer in layers}.values()
    if any(w.device.type != "cpu" for w in weights):
        return "not all of its linear layers are on a CPU"
    if any(w.dtype != torch.bfloat16 for w in weights):
        return "not all of its linear layers are in bfloat16; in others packing changes the sums"
    if not _operations_exist():
        return "this build of torch has no packed products in bfloat16"
    size = sum(w.nbytes for w in weights)
    if size > MOST_BYTES:
        return (
            f"its linear layers take {size >> 20} MiB, more than {MOST_BYTES >> 20} to keep twice"
        )
    return None


def _linear_layers(model: nn.Module) -> list[nn.Linear]:
    """Those whose product is that of `nn.Linear` and of nobody else."""
    return [x for x in model.modules() if type(x) is nn.Linear and "forward" not in x.__dict__]


def _operations_exist() -> bool:
    mkldnn = torch.backends.mkldnn
    operations = ("_reorder_linear_weight", "_linear_pointwise")
    return (
        mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and all(hasattr(torch.ops.mkldnn, name) for name in operations)
    )


def _product(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    with torch.no_grad():
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
    bias = None if layer.bias is None else layer.bias.detach()
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def product(x: Tensor) -> Tensor:
        return multiply(x, weight, bias, "none", [], "")

    return product


@contextmanager
def _in_place(products: _Products) -> Iterator[None]:
    # Through __dict__: `nn.Module.__setattr__` takes longer than a small product.
    for layer, product in products.items():
        layer.__dict__["forward"] = product
    try:
        yield
    finally:
        for layer in products:
            layer.__dict__.pop("forward", None)
