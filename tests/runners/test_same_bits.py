"""Real artifacts through the real runtimes: the same bits from x86-64, Arm and wasm, in integer kernels on each."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import models
from edgeq import pipeline
from edgeq.registry import load
from edgeq.runners import cpu
from edgeq.runners.jobs import JobSession, operators
from edgeq.verifying.matrix import output_codes
from tests.require import kernels_like_a_targets, require
from tests.runners.test_conduct import INSTALL
from tests.runners.test_ssh import board  # noqa: F401 (a fixture)

SAMPLES = 4
OCR = "ch_ppocr_mobile_v2.0_cls_infer.onnx"
PLACES: dict[str, tuple[str, dict[str, Any]]] = {
    "arm64-a53": ("arm64", {"cpu": "a53"}),
    "arm64-a76": ("arm64", {"cpu": "a76"}),
    "arm64-i8mm": ("arm64", {"cpu": "i8mm"}),
    "node": ("web", {}),
    "chromium": ("web", {"browser": "chromium"}),
    "board": ("ssh", {}),
}
# The one step beyond integers: each library has its own exp. Nothing but Softmax comes after these outputs' codes.
FLOAT_TAIL = {"cls": 1e-6}
INSTRUCTIONS = {"arm64-a53": "smlal", "arm64-a76": "udot", "arm64-i8mm": "ummla"}


def pictures(count: int, height: int, width: int) -> np.ndarray:
    """Smooth random fields, (count, 3, height, width)."""
    rng = np.random.default_rng(1)
    coarse = rng.standard_normal((count, 3, height // 16, width // 16))
    fine = rng.standard_normal((count, 3, height, width))
    return (np.kron(coarse, np.ones((16, 16))) + 0.3 * fine).astype(np.float32)


def digits(path: Path) -> np.ndarray:
    folder = Path(__file__).resolve().parents[2] / "sample_models"
    path.write_bytes((folder / "digits.onnx").read_bytes())
    with np.load(folder / "digits_calib.npz") as data:
        return np.asarray(data["input"])[:32]


def cls(path: Path) -> np.ndarray:
    require("zoo", "pip install rapidocr-onnxruntime --no-deps", lambda: find_spec("rapidocr_onnxruntime") is not None)
    origin = find_spec("rapidocr_onnxruntime").origin  # type: ignore[union-attr]
    path.write_bytes((Path(str(origin)).parent / "models" / OCR).read_bytes())
    return np.tanh(pictures(16, 48, 192))


def mobilenet(path: Path) -> np.ndarray:
    """MobileNetV2 at 96²."""
    model = models.mobilenetv2()
    for size in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        size.dim_value = 96
    del model.graph.value_info[:]
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return pictures(16, 96, 96)


BUILDERS = {"digits": digits, "cls": cls, "mobilenet": mobilenet}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """name → (artifact, samples, what this machine gives for the outputs and their last codes)."""
    kept: dict[str, tuple[Path, list[dict[str, np.ndarray]], list[dict[str, np.ndarray]], list[str]]] = {}

    def get(name: str) -> tuple[Path, list[dict[str, np.ndarray]], list[dict[str, np.ndarray]], list[str]]:
        if name not in kept:
            folder = tmp_path_factory.mktemp(name)
            array = BUILDERS[name](folder / "float.onnx")
            entry = onnx.load(folder / "float.onnx").graph.input[0].name
            result = pipeline.quantize(folder / "float.onnx", "arm64", {entry: array}, folder / "out", check=False)
            artifact = result.artifact
            feeds = [{entry: array[i : i + 1]} for i in range(SAMPLES)]
            codes = sorted({value for c in output_codes(artifact).values() for value in c.names})
            kept[name] = artifact, feeds, list(cpu.open_session(artifact).run_many(feeds, codes)), codes
        return kept[name]

    return get


def opened(place: str, artifact: Path, **more: Any) -> JobSession:
    name, options = PLACES[place]
    runner = load("edgeq.runners", name)
    need = "chromium" if place == "chromium" else name
    here = (lambda: runner.missing("chromium") is None) if need == "chromium" else (lambda: runner.missing() is None)
    require(need, INSTALL.get(need, f"edgeq doctor --install {need}"), here)
    session: JobSession = runner.open_session(artifact, **options, **more)
    return session


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("place", PLACES)
def test_the_same_bits_everywhere(place: str, name: str, made: Any, board: dict[str, str]) -> None:  # noqa: F811
    if place == "board":
        kernels_like_a_targets()
    artifact, feeds, expected, codes = made(name)
    session = opened(place, artifact, **(board if place == "board" else {}))
    for wanted, got in zip(expected, session.run_many(feeds, codes), strict=True):
        for value in codes:  # the last integers before each output
            np.testing.assert_array_equal(got[value], wanted[value])
        for output in session.outputs:
            np.testing.assert_allclose(got[output], wanted[output], rtol=0, atol=FLOAT_TAIL.get(name, 0))


@pytest.mark.parametrize("place", ["board", *INSTRUCTIONS])
def test_the_kernels_are_integer_ones(place: str, made: Any, board: dict[str, str]) -> None:  # noqa: F811
    """The graph that the other runtime made is this machine's, and on Arm its instructions were executed."""
    artifact, feeds, _, _ = made("mobilenet")
    session = opened(place, artifact, proof=True, **(board if place == "board" else {}))
    session.run(feeds[0])
    here = operators(cpu.optimized(artifact, config={}))
    counts = {op: session.report["ops"].get(op, 0) for op in ("QLinearConv", "QLinearAdd", "QGemm", "Conv", "Gemm")}
    assert counts == {"QLinearConv": 52, "QLinearAdd": 10, "QGemm": 1, "Conv": 0, "Gemm": 0}
    assert {op: here.get(op, 0) for op in counts} == counts
    if place in INSTRUCTIONS:
        executed = set(session.report["instructions"])
        assert INSTRUCTIONS[place] in executed
        assert executed <= {INSTRUCTIONS[place], "smlal"}  # depthwise kernels have no dot product
    session.close()


@pytest.mark.parametrize("name", BUILDERS)
def test_openvino_stays_within_its_own_arithmetic(name: str, made: Any, tmp_path: Path) -> None:
    """It adds in float32 and rounds once a layer: not the same bits, yet no worse an answer to the float model."""
    require("openvino", "pip install edgeq[openvino]")
    kernels_like_a_targets()
    artifact, feeds, expected, _ = made(name)
    session = load("edgeq.runners", "openvino").open_session(artifact)
    reference = cpu.open_session(artifact.parent.parent / "float.onnx")
    (output,) = session.outputs
    error = {"here": 0.0, "openvino": 0.0}
    for feed, here, got in zip(feeds, expected, session.run_many(feeds), strict=True):
        exact = reference.run(feed)[output].astype(np.float64)
        error["here"] += float(((here[output] - exact) ** 2).sum())
        error["openvino"] += float(((got[output] - exact) ** 2).sum())
    assert error["openvino"] < 2.5 * error["here"]
