"""A reference whose answers are kept."""

import numpy as np
import onnxruntime as ort
import pytest

from edgeq.runners import recorded
from edgeq.runners.recorded import Recorded
from tests.graph.written import draw, samples, save, text


@pytest.fixture
def case(tmp_path):
    return save(tmp_path, text("y = MatMul(x, w)", "float[N,16] x"), {"w": draw(16, 8)}), samples(4, 16)


def test_answers_are_those_of_the_model_and_are_found_again(case, tmp_path, monkeypatch):
    path, feeds = case
    first = Recorded(path, tmp_path / "kept", 1, streams=3)
    found = list(first.run_many(feeds))
    want = [ort.InferenceSession(str(path)).run(None, feed)[0] for feed in feeds]
    for row, array in zip(found, want, strict=True):
        np.testing.assert_array_equal(row["y"], array)
    again = Recorded(path, tmp_path / "kept", 1)
    monkeypatch.setattr(recorded.cpu, "open_session", lambda *_, **__: pytest.fail("the model ran again"))
    for feed, array in zip(feeds, want, strict=True):
        np.testing.assert_array_equal(again.run(feed)["y"], array)
