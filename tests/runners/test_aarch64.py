from pathlib import Path

import pytest

from edgeq.runners import aarch64

# Words as GNU as 2.40 assembles the instruction beside them.
ASSEMBLED = [
    (0x6F83E841, "udot"),  # udot v1.4s, v2.16b, v3.4b[2]
    (0x0FA3E041, "sdot"),  # sdot v1.2s, v2.8b, v3.4b[1]
    (0x6E9D97DF, "udot"),  # udot v31.4s, v30.16b, v29.16b
    (0x4E839441, "sdot"),  # sdot v1.4s, v2.16b, v3.16b
    (0x4E83A441, "smmla"),  # smmla v1.4s, v2.16b, v3.16b
    (0x6E83A451, "ummla"),  # ummla v17.4s, v2.16b, v3.16b
    (0x4E83AC41, "usmmla"),  # usmmla v1.4s, v2.16b, v3.16b
    (0x0E638041, "smlal"),  # smlal v1.4s, v2.4h, v3.4h
    (0x6E238041, "umlal"),  # umlal2 v1.8h, v2.16b, v3.16b
    (0x0E63C041, None),  # smull v1.4s, v2.4h, v3.4h
    (0x4FA31041, None),  # fmla v1.4s, v2.4s, v3.s[1]
    (0x4F23F041, None),  # sudot v1.4s, v2.16b, v3.4b[1]
]


@pytest.mark.parametrize(("word", "name"), ASSEMBLED)
def test_encodings(tmp_path: Path, word: int, name: str | None) -> None:
    log = tmp_path / "log"
    log.write_text(f"IN: \n0x550081be40:  {word:08x}  what qemu calls it\n")
    assert aarch64.integer_instructions(log) == ({name: 1} if name else {})


def test_a_line_over_the_edge_of_a_block_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aarch64, "_BLOCK", 50)
    log = tmp_path / "log"
    log.write_text("0x550081be40:  6e9d97df  udot     v31.4s\n" * 20)
    assert aarch64.integer_instructions(log) == {"udot": 20}
