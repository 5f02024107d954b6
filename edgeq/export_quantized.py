"""What the export of modules that torch has quantized needs beside that of others.

They give Q-DQ pairs and stored codes, with the scales that they have, for `edgeq retarget`: those of PT2E; eager and FX
ones, whose packed weights the TorchScript exporter alone knows; and linear layers of torchao (`quantize_`) or with
`quantize_dynamic`, whose weights are then read through a DequantizeLinear. What such layers round at run time is left
in float. Functions are given the module `torch`, since `edgeq.export` is imported without it.
"""

from __future__ import annotations

import copy
from typing import Any

from edgeq.errors import ModelError

INT4 = 22  # ONNX's number of the type


def is_packed(module: Any) -> bool:
    """Is it of eager mode or FX, with packed weights?"""
    kinds = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
    return any(type(part).__module__.startswith(kinds) for part in module.modules())


def rounds(module: Any) -> bool:
    """Does it compute with codes?"""
    nodes = getattr(getattr(module, "graph", None), "nodes", ())
    return (
        is_packed(module)
        or hasattr(module, "stored")
        or any("quantized_decomposed" in str(node.target) for node in nodes)
    )


def with_codes(torch: Any, module: Any) -> Any:
    """The module, or a copy in which linear layers of stored codes read these through a DequantizeLinear."""

    class Linear(torch.nn.Module):
        """y = x · ((codes - zero) · scale) + bias; codes (inputs, outputs), scale, zero (inputs / block, outputs)."""

        def __init__(self, codes: Any, scale: Any, zero: Any, bias: Any, narrow: bool) -> None:
            super().__init__()
            self.narrow, self.block = narrow, codes.shape[1] // scale.shape[1]
            for name, tensor in (("codes", codes), ("scale", scale), ("zero", zero)):
                self.register_buffer(name, tensor.detach().T.contiguous())
            self.register_buffer("bias", None if bias is None else bias.detach().float())

        def forward(self, x: Any) -> Any:
            weight = self._symbol() if torch.onnx.is_in_onnx_export() else self._real()
            return x @ weight if self.bias is None else x @ weight + self.bias

        def _real(self) -> Any:
            scale, zero = (t.repeat_interleave(self.block, 0) for t in (self.scale, self.zero))
            return (self.codes.float() - zero.float()) * scale

        def _symbol(self) -> Any:
            if self.scale.shape[0] > 1:
                given, how = [self.codes, self.scale, self.zero], {"axis": 0, "block_size": self.block}
            else:
                given, how = [self.codes, self.scale[0], self.zero[0]], {"axis": 1}
            if self.narrow:
                for i in (0, 2):
                    given[i] = torch.onnx.ops.symbolic(
                        "Cast", [given[i]], {"to": INT4}, dtype=INT4, shape=given[i].shape
                    )
            return torch.onnx.ops.symbolic("DequantizeLinear", given, how, dtype=torch.float32, shape=self.codes.shape)

    held = {name: found for name, part in module.named_modules() if (found := _stored(torch, part)) is not None}
    if not held:
        return module
    made = Linear(*held[""]) if "" in held else copy.deepcopy(module)
    for name in filter(None, held):
        parent, _, last = name.rpartition(".")
        setattr(made.get_submodule(parent), last, Linear(*held[name]))
    made.stored = True
    return made


def _stored(torch: Any, part: Any) -> tuple[Any, Any, Any, Any, bool] | None:
    """Codes (outputs, inputs), scale and zero (outputs, inputs / block), bias and "4 bits?" of a layer; None without.

    Of `quantize_dynamic`, or torchao: a weight that has `qdata` of int8, `scale`, and perhaps `zero_point`.
    """
    if type(part).__module__ == "torch.ao.nn.quantized.dynamic.modules.linear":
        weight, bias = part.weight(), part.bias()
        each = weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
        scale = weight.q_per_channel_scales() if each else torch.tensor([weight.q_scale()])
        zero = weight.q_per_channel_zero_points() if each else torch.tensor([weight.q_zero_point()])
        shape, narrow, codes = (weight.shape[0], 1), False, weight.int_repr()
        scale, zero = scale.reshape(-1, 1).expand(shape), zero.reshape(-1, 1).expand(shape)
    elif isinstance(part, torch.nn.Linear) and hasattr(part.weight, "qdata"):
        codes, scale, bias = part.weight.qdata, part.weight.scale, part.bias
        zero = getattr(part.weight, "zero_point", None)
        zero = torch.zeros_like(scale) if zero is None else zero
        if codes.dtype != torch.int8 or scale.dim() != 2 or codes.shape[0] != scale.shape[0]:
            raise ModelError(f"{type(part.weight).__name__} is stored as {codes.dtype} of a layout unknown here")
        narrow = str(getattr(part.weight, "target_dtype", "")).endswith("int4")
    else:
        return None
    return codes, scale.float(), zero.to(torch.int8), bias, narrow


def wrapped(torch: Any, module: Any) -> Any:
    """The module inside another: the TorchScript exporter takes whatever has a `graph` for a script."""

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *given: Any) -> Any:
            return self.inner(*given)

    return Wrapped()
