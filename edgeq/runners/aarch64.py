"""Which integer multiply-accumulate instructions of AArch64 a program executed, from qemu's log of translated code.

`qemu-aarch64 -d in_asm` writes each block of instructions when it is first executed, so an instruction that is
listed was run. Encodings: Arm Architecture Reference Manual for A-profile, "Advanced SIMD" data processing.
"""

from __future__ import annotations

import re
from pathlib import Path

_LINE = re.compile(rb"^0x[0-9a-f]+:\s+([0-9a-f]{8})\s", re.MULTILINE)
_BLOCK = 2**24

# name: (mask, value) pairs; the bits outside the mask are registers, the element size and the vector length
ENCODINGS: dict[str, tuple[tuple[int, int], ...]] = {
    "smlal": ((0xBF20FC00, 0x0E208000),),
    "umlal": ((0xBF20FC00, 0x2E208000),),
    "sdot": ((0xBFE0FC00, 0x0E809400), (0xBFC0F400, 0x0F80E000)),  # vector, by element
    "udot": ((0xBFE0FC00, 0x2E809400), (0xBFC0F400, 0x2F80E000)),
    "smmla": ((0xFFE0FC00, 0x4E80A400),),
    "ummla": ((0xFFE0FC00, 0x6E80A400),),
    "usmmla": ((0xFFE0FC00, 0x4E80AC00),),
}


def integer_instructions(log: Path) -> dict[str, int]:
    """How many places of the executed code hold each instruction of `ENCODINGS`; only those that occur."""
    counts = dict.fromkeys(ENCODINGS, 0)
    with log.open("rb") as file:
        while block := file.read(_BLOCK):
            block += file.readline()
            for found in _LINE.finditer(block):
                word = int(found[1], 16)
                if word & 0x9E000000 == 0x0E000000:  # Advanced SIMD data processing: all of the above
                    for name, patterns in ENCODINGS.items():
                        counts[name] += any(word & mask == value for mask, value in patterns)
    return {name: count for name, count in counts.items() if count}
