"""What coverage-guided fuzzing found worth keeping is still read, or refused in one line, within the limits."""

import zipfile
from pathlib import Path

import pytest

SEEDS = sorted((Path(__file__).parent / "seeds").glob("*.zip"))


@pytest.mark.parametrize("seeds", SEEDS, ids=lambda path: path.stem)
def test_a_file_that_reached_other_lines(sandbox, tmp_path, seeds):
    refused, path = 0, tmp_path / f"tried.{seeds.stem}"
    with zipfile.ZipFile(seeds) as kept:
        names = kept.namelist()
        for name in names:
            path.write_bytes(kept.read(name))
            refused += sandbox.refuses("read", seeds.stem, path, codes=(0, 2)).code == 2
    assert refused > len(names) // 2
