"""Weights as indices of levels: by a kernel that takes them, or looked up in a codebook.

    MatMulBnb4                  codes of 4 bits with a scale a block, multiplied from there
    DequantizeLinear            float8, made real in each run
    bytes → Gather → Gather [→ Mul by scales] → Reshape: a weight, which runtimes fold once, as they do constants
    ids → Gather of the bytes of those rows, and of their scales → the same: a table, of which only they are ever real

A byte holds 8, 4, 2 or 1 codes of 1, 2, 4 or 8 bits, the first in its lowest bits, and a constant of 256 rows says
which. Codes of other sizes lie in planes: 3 bits are one plane of 2 and one of 1, whose sum they are.
`edgeq/planning/forms.py` chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from math import lcm

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import drop_unused_initializers, nodes_named, replace
from edgeq.numerics import floats, pack
from edgeq.passes.builder import FLOAT, Builder
from edgeq.planning.forms import LOOKED_UP, bnb4_block, kernel
from edgeq.target import Target
from edgeq.types import Coded, PerBlock, PerChannel, Solution

INT32, INT64 = ir.DataType.INT32, ir.DataType.INT64
BNB4_TYPES = {"fp4": 0, "nf4": 1}
FLOAT8 = {"fp8_e4m3": "float8e4m3fn", "fp8_e5m2": "float8e5m2"}
FLOAT8_OPSET = 21  # of blocks of them


def write(model: ir.Model, solution: Solution, target: Target) -> ir.Model:
    """Rewrite in place every node with a weight of the solution's `codes`, and return the model."""
    writer = _Writer(model)
    for node in nodes_named(model, {name for name, _ in solution.codes}):
        for index in [i for name, i in solution.codes if name == node.name]:
            tensor = solution.codes[node.name or "", index]
            writer.rewrite(node, index, tensor, target)
    drop_unused_initializers(model)
    return model


class _Writer:
    def __init__(self, model: ir.Model) -> None:
        self.model, self.build = model, Builder(model)
        self.stored: dict[tuple[str, bool, bytes], list[ir.Value | None]] = {}
        self.digits: dict[tuple[int, int], ir.Value] = {}

    def rewrite(self, node: ir.Node, index: int, tensor: Coded, target: Target) -> None:
        form = kernel(tensor.code, node.op_type, tensor.data.shape, tensor.spec, target)
        forms: dict[str, Callable[[ir.Node, int, Coded], None]] = {
            "MatMulBnb4": self._bnb4, "DequantizeLinear": self._dequantize, LOOKED_UP: self._weight,
        }  # fmt: skip
        (self._rows if node.op_type == "Gather" else forms[form])(node, index, tensor)

    def _once(
        self, node: ir.Node, index: int, tensor: Coded, make: Callable[[str], list[ir.Value | None]]
    ) -> list[ir.Value | None]:
        """What `make` gives for the weight's name, made once for all nodes that share it, tables apart."""
        source = node.inputs[index]
        assert source is not None
        name, digest = self.build.key(source, tensor.data, tensor.scale, tensor.levels)
        key = name, node.op_type == "Gather", digest
        if key not in self.stored:
            self.stored[key] = make(source.name or "weight")
        return self.stored[key]

    def _bnb4(self, node: ir.Node, index: int, tensor: Coded) -> None:
        block = bnb4_block(node.op_type, tensor.data.shape, tensor.spec)
        rows = _Rows(tensor)
        assert block is not None

        def make(base: str) -> list[ir.Value | None]:
            pairs = rows.matrix(tensor.data).reshape(-1, 2)[:, ::-1]  # the first code in the high half
            scales = np.repeat(rows.scale, rows.width // block // rows.scale.shape[1], 1).reshape(-1)
            return [self.build.init(f"{base}_q", pack.pack(pairs, 4)), self.build.reals(f"{base}_scale", scales)]

        attributes = {
            "K": rows.width, "N": rows.count, "block_size": block, "quant_type": BNB4_TYPES[tensor.code],
        }  # fmt: skip
        inputs = [node.inputs[0], *self._once(node, index, tensor, make)]
        replace(node, self.build.product(node, "MatMulBnb4", inputs, attributes))

    def _dequantize(self, node: ir.Node, index: int, tensor: Coded) -> None:
        granularity = tensor.spec.granularity
        attributes = {"axis": getattr(granularity, "axis", 0) % tensor.data.ndim}
        if isinstance(granularity, PerBlock):
            attributes["block_size"] = granularity.size

        def make(base: str) -> list[ir.Value | None]:
            codes = tensor.data.view(floats.FORMATS[FLOAT8[tensor.code]])
            inputs: list[ir.Value | None] = [
                self.build.init(f"{base}_q", codes), self.build.reals(f"{base}_scale", tensor.scale)
            ]  # fmt: skip
            return [self.build.first("DequantizeLinear", inputs, f"{base}_real", FLOAT, codes.shape, attributes)]

        self.model.opset_imports[""] = max(self.model.opset_imports.get("", 0), FLOAT8_OPSET)
        node.replace_input_with(index, self._once(node, index, tensor, make)[0])

    def _weight(self, node: ir.Node, index: int, tensor: Coded) -> None:
        def make(base: str) -> list[ir.Value | None]:
            def add(op, inputs, suffix, shape, dtype=FLOAT, **attributes):  # type: ignore[no-untyped-def]
                return self.build.first(op, inputs, f"{base}_{suffix}", dtype, shape, attributes)

            rows = _Rows(tensor)
            real = self._looked_up(rows, self._constants(base, rows, tensor), tensor, rows.count, add)
            moved = [tensor.data.shape[axis] for axis in rows.order]
            real = add("Reshape", [real, self.build.init(f"{base}_shape", np.array(moved))], "moved", moved)
            back = np.argsort(rows.order).tolist()
            if back != sorted(back):
                real = add("Transpose", [real], "real", tensor.data.shape, perm=back)
            return [real]

        node.replace_input_with(index, self._once(node, index, tensor, make)[0])

    def _rows(self, node: ir.Node, index: int, tensor: Coded) -> None:
        """The rows of a table that a Gather asks for."""
        rows, ids, shape = _Rows(tensor), node.inputs[1], node.outputs[0].shape
        assert ids is not None
        assert rows.order == [0, 1]

        def add(op, inputs, suffix, shape, dtype=FLOAT, **attributes):  # type: ignore[no-untyped-def]
            return self.build.before(node, op, inputs, suffix, ir.Shape(shape), attributes, dtype=dtype)

        parts = self._once(node, index, tensor, lambda base: self._constants(base, rows, tensor))
        flat = add("Reshape", [ids, self.build.init("flat", np.array([-1]))], "ids", [None], ids.dtype)
        found: list[ir.Value | None] = [
            add("Gather", [part, flat], "rows", [None, *list(part.shape)[1:]], part.dtype, axis=0)
            if part is not None and part.shape is not None and len(part.shape) > 1
            else part  # levels that all rows share
            for part in parts
        ]
        real = self._looked_up(rows, found, tensor, -1, add)
        size = add("Shape", [ids], "size", [None if ids.shape is None else len(ids.shape)], INT64)
        width = self.build.init("width", np.array([rows.width]))
        whole = add("Concat", [size, width], "whole", [None if shape is None else len(shape)], INT64, axis=0)
        as_asked = {"allowzero": 1}  # a dimension of 0 is one
        replace(node, self.build.before(node, "Reshape", [real, whole], "table", shape, as_asked))

    def _constants(self, base: str, rows: _Rows, tensor: Coded) -> list[ir.Value | None]:
        """Levels, scales where there are any, and the planes of codes, row by row."""
        own, scaled = tensor.levels.ndim > 1, tensor.scale.ndim > 0 and bool((tensor.scale != 1).any())
        levels = tensor.levels if tensor.scale.ndim else tensor.levels * tensor.scale
        found: list[ir.Value | None] = [
            self.build.reals(f"{base}_levels", rows.levels(levels), alone=False)
            if own
            else self.build.init(f"{base}_levels", levels),
            self.build.reals(f"{base}_scale", rows.scale[:, :, None]) if scaled else None,
        ]
        codes, low = rows.padded(tensor.data), 0
        for bits in rows.planes:
            packed = pack.pack((codes >> np.uint8(low)) & np.uint8(2**bits - 1), bits).reshape(rows.count, -1)
            found.append(self.build.init(f"{base}_q{low}" if low else f"{base}_q", packed))
            low += bits
        return found

    def _looked_up(self, rows: _Rows, parts: list[ir.Value | None], tensor: Coded, count: int, add) -> ir.Value:  # type: ignore[no-untyped-def]
        """Reals (count, width) of the constants' rows; a count of -1 is one that only a run knows."""
        levels, scale, *planes = parts
        n = None if count < 0 else count
        groups = [n, rows.groups, rows.span // rows.groups]
        grouped = self.build.init("groups", np.array([count, *groups[1:]]))
        codes, low = None, 0
        for bits, plane in zip(rows.planes, planes, strict=True):
            assert plane is not None
            per = 8 // bits
            places = add("Cast", [plane], "bytes", [n, rows.span // per], INT32, to=int(INT32))
            if bits < 8:
                shape = [n, rows.span // per, per]
                places = add("Gather", [self._digits(bits, low), places], "digits", shape, INT32, axis=0)
            places = add("Reshape", [places, grouped], "codes", groups, INT32)
            codes = places if codes is None else add("Add", [codes, places], "sum", groups, INT32)
            low += bits
        if tensor.levels.ndim > 1:
            real = add("GatherElements", [levels, codes], "levels", groups, axis=2)
        else:
            real = add("Gather", [levels, codes], "levels", groups, axis=0)
        if scale is not None:
            real = add("Mul", [real, scale], "scaled", groups)
        real = add("Reshape", [real, self.build.init("span", np.array([count, rows.span]))], "padded", [n, rows.span])
        if rows.span > rows.width:
            ends = [self.build.init(k, np.array([v])) for k, v in (("start", 0), ("end", rows.width), ("axis", 1))]
            real = add("Slice", [real, *ends], "cut", [n, rows.width])
        return real

    def _digits(self, bits: int, low: int) -> ir.Value:
        """int32 (256, 8 / bits): the codes in a byte, times 2**low."""
        if (bits, low) not in self.digits:
            codes = (np.arange(256, dtype=np.int32)[:, None] >> np.arange(0, 8, bits)) & (2**bits - 1)
            small = self.build.init("digits_small", (codes << low).astype(np.uint8))
            self.digits[bits, low] = self.build.first("Cast", [small], "digits", INT32, codes.shape, {"to": int(INT32)})
        return self.digits[bits, low]


class _Rows:
    """A weight as `count` rows of `width` weights, in `groups` runs that share a scale; `span`: filled up to be packed.

    order: its axes as rows have them, the channels first, or a blocked axis last. planes: bits of each plane of codes.
    """

    def __init__(self, tensor: Coded) -> None:
        shape, granularity, bits = tensor.data.shape, tensor.spec.granularity, tensor.spec.bits
        axes = list(range(len(shape)))
        self.groups = 1
        match granularity:
            case PerBlock(axis, size):
                last = axes.pop(axis)
                self.order, self.width = [*axes, last], shape[last]
                self.groups = -(-self.width // size)
            case PerChannel(axis):
                self.order = [axes.pop(axis), *axes]
                self.width = tensor.data.size // shape[axis]
            case _:
                self.order, self.width = axes, tensor.data.size // shape[0]
        self.count = tensor.data.size // self.width
        self.planes = [width for width in (8, 4, 2, 1) if bits & width]
        whole = 8 // min(self.planes)  # codes of the least plane that fill a byte
        run = granularity.size if isinstance(granularity, PerBlock) else 1
        self.span = -(-self.width // lcm(run, whole)) * lcm(run, whole)
        self.groups = self.span // run if run > 1 else self.groups
        self._scale = tensor.scale
        self._blocked = isinstance(granularity, PerBlock)

    def matrix(self, x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x.transpose(self.order)).reshape(self.count, self.width)

    def padded(self, x: np.ndarray) -> np.ndarray:
        return np.pad(self.matrix(x), ((0, 0), (0, self.span - self.width)))

    @property
    def scale(self) -> np.ndarray:
        """(count, groups)"""
        return self.levels(self._scale[..., None])[:, :, 0]

    def levels(self, own: np.ndarray) -> np.ndarray:
        """Rows of numbers a group, (*params_shape, n), as (count, groups, n)."""
        order = [*self.order, len(self.order)] if self._blocked else range(own.ndim)
        found = own.transpose(order).reshape(self.count, -1, own.shape[-1])
        return np.pad(found, ((0, 0), (0, self.groups - found.shape[1]), (0, 0)))
