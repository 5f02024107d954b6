"""Codes of 3 bits for MatMulNBits, which takes 4: a function of the model widens them when the model is loaded.

Runtimes write a function out where it is called and compute what hangs on constants alone once, so that the file holds
3 bits a weight, and the kernel sees the 4-bit codes that it knows.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from edgeq.graph.edit import Names, make_node

DOMAIN, NAME = "edgeq", "three_bits"
OPSET = 18
"""The first that has BitwiseAnd. A function must import the opset that the model does."""
TEXT = """
<domain: "edgeq", opset_import: ["" : 18]>
three_bits (packed) => (bytes)
{
    own = Constant <value = uint8[1] {187}> ()
    lent = Constant <value = uint8[1] {68}> ()
    top = Constant <value = uint8[1] {136}> ()
    one = Constant <value = uint8[1] {1}> ()
    two = Constant <value = uint8[1] {2}> ()
    first = BitwiseAnd (packed, own)
    spread = BitwiseAnd (packed, lent)
    a, b, c = Split <axis = 2, num_outputs = 3> (spread)
    a3 = BitShift <direction = "LEFT"> (a, one)
    b1 = BitShift <direction = "RIGHT"> (b, one)
    c0 = BitShift <direction = "RIGHT"> (c, two)
    ab = BitwiseOr (a3, b1)
    last = BitwiseOr (ab, c0)
    known = Concat <axis = 2> (first, last)
    opposite = BitwiseNot (known)
    opposite3 = BitwiseAnd (opposite, top)
    second = BitShift <direction = "RIGHT"> (opposite3, one)
    bytes = BitwiseOr (known, second)
}
"""
"""The inverse of `numerics.pack.three_bits`: in every half byte the second bit is the opposite of the first."""


def widened(model: ir.Model, packed: ir.Value, names: Names) -> ir.Value:
    """The bytes (N, blocks, 4 q) of 4-bit codes of an initializer uint8 (N, blocks, 3 q) of 3-bit ones."""
    if (DOMAIN, NAME, "") not in model.functions:
        function = ir.serde.deserialize_function(onnx.parser.parse_function(TEXT))
        model.functions[function.identifier()] = function
        model.opset_imports[DOMAIN] = 1
        model.opset_imports[""] = max(model.opset_imports.get("", 0), OPSET)
    assert packed.shape is not None
    n, blocks, size = packed.shape.numpy()
    shape = ir.Shape([n, blocks, size // 3 * 4])
    node = make_node(NAME, [packed], names.new(f"{packed.name}_4"), ir.DataType.UINT8, shape, domain=DOMAIN)
    model.graph.insert_before(model.graph[0], node)
    return node.outputs[0]
