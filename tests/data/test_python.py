"""Samples from Python: loaders, tuples, dicts, several inputs, and shapes that differ from sample to sample."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgeq
from edgeq.collecting import stats
from edgeq.data import open_data
from edgeq.errors import CalibrationError
from tests.graph.written import draw, save, text
from tests.require import require

ROOT = Path(__file__).resolve().parents[2]
TWO = {"ids": (None, None), "mask": (None, None)}


def arrays(data):
    return [{k: v.tolist() for k, v in feeds.items()} for feeds in data]


def test_tuples_go_by_position_and_labels_are_left_out():
    a, b = np.array([[1, 2]]), np.array([[1, 0]])
    wanted = [{"ids": [[1, 2]], "mask": [[1, 0]]}]
    for sample in (
        (a, b), [a, b], (a, b, 7), (a, b, "label", None), {"ids": a, "mask": b}, {"mask": b, "labels": 3, "ids": a},
        ({"ids": a, "mask": b}, 5), {"ids": [[1, 2]], "mask": [[1, 0]]},
    ):  # fmt: skip
        assert arrays(open_data([sample], TWO)) == wanted, sample
    for sample, message in (
        ((a,), r"sample 0 holds 1 arrays for 2 inputs \(ids, mask\)"), ((a, 3), "is a tuple of int"), (4, "is a int"),
        ("text", "is a str"), ((), "holds 0 arrays"), (a, "holds 1 arrays for 2"),
    ):  # fmt: skip
        with pytest.raises(CalibrationError, match=message):
            open_data([sample], TWO)


def test_a_batch_is_parted_when_the_model_takes_one_at_a_time():
    batch = draw(4, 3)
    assert [f["x"].shape for f in open_data([(batch, 1)], {"x": (1, 3)})] == [(1, 3)] * 4
    assert [f["x"].shape for f in open_data([(batch, 1)], {"x": (None, 3)})] == [(4, 3)]
    assert [f["x"].shape for f in open_data([batch], {"x": (4, 3)})] == [(4, 3)]
    parted = open_data(lambda: [batch, batch[:1]], {"x": (1, 3)})
    np.testing.assert_array_equal(np.concatenate([f["x"] for f in parted]), np.concatenate([batch, batch[:1]]))


def test_a_torch_loader(tmp_path):
    require("torch", "pip install torch")
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    images = torch.from_numpy(draw(12, 4, 8, 8)).requires_grad_()
    model = save(tmp_path, text("y = Conv(x, w)"), {"w": draw(4, 4, 3, 3)})
    pairs = TensorDataset(images, torch.arange(12))
    held = {"x": images.detach().numpy()}
    data = open_data(DataLoader(pairs, batch_size=4), {"x": (None, 4, 8, 8)})
    assert [f["x"].shape for f in data] == [(4, 4, 8, 8)] * 3
    np.testing.assert_array_equal(np.concatenate([f["x"] for f in data]), held["x"])
    one = edgeq.quantize(model, "x86_64", held, tmp_path / "a", calibrator="minmax", check=False)
    for name, asked in (("plain", {}), ("two", {"workers": 2})):
        loader = DataLoader(pairs, batch_size=4)
        two = edgeq.quantize(model, "x86_64", loader, tmp_path / name, calibrator="minmax", **asked)
        assert two.artifact.read_bytes() == one.artifact.read_bytes()
    shuffled = edgeq.quantize(
        model, "x86_64", DataLoader(pairs, shuffle=True), tmp_path / "s", calibrator="minmax"
    ).report  # each walk has an order of its own: reference and artifact must still see the same samples
    assert shuffled.outputs[0].sqnr_db == pytest.approx(two.report.outputs[0].sqnr_db, abs=1e-6)


def test_torch_is_not_imported_for_arrays():
    ask = (
        "import sys, numpy as np\nfrom edgeq.data import open_data\n"
        "list(open_data([(np.zeros((1, 3)), 1)], {'x': (None, 3)}))\n"
        "assert not {'torch', 'PIL', 'distributed'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", ask], cwd=ROOT, check=True, timeout=60)


BODY = "e = Gather(table, ids) m = Cast<to=1>(mask) u = Unsqueeze(m, last) h = Mul(e, u) p = MatMul(h, w) y = Relu(p)"
TEXT_INITS = {"table": draw(50, 16), "last": np.array([-1]), "w": draw(16, 8)}


def sentences(count):
    """Batches of 1 to 3 sentences of 1 to 40 tokens."""
    rng = np.random.default_rng(5)
    shapes = [(int(rng.integers(1, 4)), int(rng.integers(1, 41))) for _ in range(count)]
    return [{"ids": rng.integers(0, 50, s), "mask": rng.integers(0, 2, s)} for s in shapes]


def test_two_inputs_whose_shapes_differ_a_sample(tmp_path, monkeypatch):
    model = save(tmp_path, text(BODY, "int64[N,L] ids, int64[N,L] mask", "float[N,L,8] y"), TEXT_INITS)
    feeds = sentences(18)
    (tmp_path / "d").mkdir()
    for i, feed in enumerate(feeds):
        np.savez(tmp_path / "d" / f"{i:02}.npz", **feed)
    (tmp_path / "told.py").write_text(
        "import numpy as np, pathlib\n"
        "def given():\n"
        "    for file in sorted(pathlib.Path(__file__).with_name('d').iterdir()):\n"
        "        held = np.load(file)\n"
        "        yield held['ids'], held['mask'], 'label'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "s.npz"
    one = edgeq.quantize(model, "x86_64", feeds, tmp_path / "a", save_stats=file)
    assert one.report.verification.samples == one.report.calibration["samples"] == 18
    assert one.report.outputs[0].sqnr_db > 25
    hidden = [(TEXT_INITS["table"][f["ids"]] * f["mask"][..., None]) for f in feeds]
    (extrema,) = (s.extrema for s in stats.load(file).summaries.values())  # of the MatMul's input
    assert (extrema.lo, extrema.hi) == (min(h.min() for h in hidden), max(h.max() for h in hidden))
    assert extrema.count == sum(h.size for h in hidden)
    for source in (tmp_path / "d", "told:given"):
        for workers in (1, 2):
            again = edgeq.quantize(model, "x86_64", source, tmp_path / "b", workers=workers, check=False)
            assert again.artifact.read_bytes() == one.artifact.read_bytes(), (source, workers)


def test_widths_that_differ(tmp_path):
    """As line recognition has it: a fixed height, and each width its own."""
    model = save(tmp_path, text("c = Conv<pads=[1,1,1,1]>(x, w) y = GlobalAveragePool(c)", "float[N,4,8,W] x"), {
        "w": draw(4, 4, 3, 3)
    })  # fmt: skip
    feeds = [{"x": draw(1 + i % 2, 4, 8, 5 + 7 * i)} for i in range(9)]
    (tmp_path / "d").mkdir()
    for i, feed in enumerate(feeds):
        np.save(tmp_path / "d" / f"{i}.npy", feed["x"])
    one = edgeq.quantize(model, "x86_64", feeds, tmp_path / "a")
    two = edgeq.quantize(model, "x86_64", tmp_path / "d", tmp_path / "b", workers=2)
    assert one.artifact.read_bytes() == two.artifact.read_bytes()
    assert one.report.outputs[0].sqnr_db == two.report.outputs[0].sqnr_db > 25
