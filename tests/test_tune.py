"""Tuning: the least that meets the budget is taken, what was run is not run again, and a refusal says why."""

import json
import shutil

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from edgeq import pipeline, target, trials, tune
from edgeq.errors import EdgeqError, RecipeError
from edgeq.numerics.metrics import sqnr_db
from edgeq.planning.coverage import integer_share
from edgeq.report.schema import Trial, load
from edgeq.search.goal import Goal
from edgeq.verifying.verification import verify_files
from tests.command import matmul
from tests.graph.written import draw, samples, save, text
from tests.search.test_recovery import BODY, answers, unequal

PER_TENSOR = """name = "whole"
title = "one scale a weight"
runner = "cpu"
extends = "generic"
[types]
s8c = {dtype = "int8", symmetric = true, narrow = true}
"""


@pytest.fixture
def case(tmp_path):
    """A model that collapses with one scale a weight, on such a target, and the file of that target."""
    path = save(tmp_path, text(BODY), unequal())
    aim = tmp_path / "whole.toml"
    shutil.copy(target.folder() / "generic.toml", tmp_path / "generic.toml")
    aim.write_text(PER_TENSOR)
    return path, str(aim), samples(4, 4, 8, 8, count=16)


def test_the_budget_is_met_by_the_first_method_that_can(case, tmp_path):
    path, aim, data = case
    found = tune.tune(path, aim, data, tmp_path / "out", goal=Goal(min_sqnr=24.0))
    assert found.met
    assert found.trials[0].step == "as given"
    best = next(t for t in found.trials if t.digest == found.best)
    assert best.step == "equalize"
    assert best.integer == 1
    assert found.trials[0].sqnr_db < 18 < 24 <= best.sqnr_db
    artifact = tmp_path / "out" / "model.onnx"
    assert sqnr_db(answers(path, data), answers(artifact, data)) == pytest.approx(best.sqnr_db, abs=0.5)
    assert "equalize" in (tmp_path / "out" / "recipe.toml").read_text()
    assert json.loads((tmp_path / "out" / "tuning.json").read_text())["best"] == found.best


def test_what_was_run_is_not_run_again(case, tmp_path, monkeypatch):
    path, aim, data = case
    first = tune.tune(path, aim, data, tmp_path / "out", goal=Goal(min_sqnr=24.0))
    before = (tmp_path / "out" / "model.onnx").read_bytes()

    def never(*args, **kwargs):
        raise AssertionError("a trial ran again")

    monkeypatch.setattr(trials, "quantize", never)
    again = tune.tune(path, aim, data, tmp_path / "out", goal=Goal(min_sqnr=24.0))
    assert [(t.step, t.digest, t.value) for t in again.trials] == [(t.step, t.digest, t.value) for t in first.trials]
    assert all(t.seconds == 0 for t in again.trials)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == before
    other = [{"x": feed["x"] + 1} for feed in data]
    with pytest.raises(AssertionError, match="ran again"):
        tune.tune(path, aim, other, tmp_path / "out", goal=Goal(min_sqnr=24.0))


def test_only_what_is_taken_is_run_at_each_level(case, tmp_path):
    path, aim, data = case
    found = tune.tune(path, aim, data, tmp_path / "out", goal=Goal(min_sqnr=24.0))
    taken = verify_files(path, tmp_path / "out" / "model.onnx", aim, data, recipe=tmp_path / "out" / "recipe.toml")
    assert load(tmp_path / "out").verification.levels == taken.levels
    assert set(taken.levels) == {"disabled", "basic", "all"}
    others = {t.digest for t in found.trials} - {found.best}
    assert others
    assert not any(load(tmp_path / "out" / trials.FOLDER / name).verification.levels for name in others)


def test_nodes_go_float_where_nothing_else_is_enough(case, tmp_path):
    path, aim, data = case
    found = tune.tune(path, aim, data, tmp_path / "out", goal=Goal(min_sqnr=57.0))
    assert found.met
    best = next(t for t in found.trials if t.digest == found.best)
    assert "float" in best.step
    assert 0 < best.integer < 1
    met = [t for t in found.trials if not t.misses and not t.problem]
    assert best.integer == max(t.integer for t in met)


def test_the_metric_is_for_what_a_few_samples_speak_for(case, tmp_path, monkeypatch):
    path, aim, _ = case
    data, walks, really = samples(4, 4, 8, 8, count=60), [], pipeline.verify_files
    monkeypatch.setattr(pipeline, "verify_files", lambda *args, **ways: (walks.append(args), really(*args, **ways))[1])
    ways = {"goal": Goal(min_sqnr=300.0, min_integer=0.99)}
    found = tune.tune(path, aim, data, tmp_path / "out", **ways)
    shown = [t for t in found.trials if not t.problem]
    declined = [t for t in found.trials if "not measured further" in t.problem]
    assert len(walks) == len(shown) < len(shown) + len(declined)
    assert shown[0].step == "as given"
    assert not any(t.kept for t in declined)
    again = tune.tune(path, aim, data, tmp_path / "out", **ways)
    assert len(walks) == len(shown)
    assert [(t.step, t.problem) for t in again.trials] == [(t.step, t.problem) for t in found.trials]


def test_sixteen_bits_before_float(case, tmp_path):
    """Where the target has wider activations, a node that gets them multiplies integers still."""
    path, _, data = case
    wide = tmp_path / "wide.toml"
    wide.write_text(PER_TENSOR + 'u16 = {dtype = "uint16"}\n[[rule]]\nops = ["Conv"]\nact = "u8"\nweight = "s8c"\n')
    found = tune.tune(path, str(wide), data, tmp_path / "out", goal=Goal(min_sqnr=57.0, min_integer=1.0))
    best = next(t for t in found.trials if t.digest == found.best)
    assert "nodes u16" in best.step
    assert best.integer == 1
    codes = {t.data_type for t in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    assert onnx.TensorProto.UINT16 in codes


def test_a_repair_is_tried_again_behind_float_nodes(case, tmp_path, monkeypatch):
    """One that does nothing for the whole may do something once the worst layer is out of the way."""
    path, aim, data = case
    run, seen = trials.quantize, []

    def harmful_at_first(*args, recipe, **kwargs):
        made = run(*args, recipe=recipe, **kwargs)
        seen.append(recipe)
        if "equalize" in recipe.passes and not recipe.rule:
            (made.folder / "report.json").unlink()
            raise EdgeqError("not yet")
        return made

    monkeypatch.setattr(trials, "quantize", harmful_at_first)
    found = tune.tune(path, aim, data, tmp_path / "out", goal=Goal(min_sqnr=300.0, max_bytes=10))
    steps = [trial.step for trial in found.trials]
    assert "equalize behind that" in steps
    assert any("equalize" in recipe.passes and recipe.rule for recipe in seen)
    assert steps.index("equalize") < steps.index("sensitivity") < steps.index("equalize behind that")


def test_what_cannot_be_met_is_said(case, tmp_path):
    path, aim, data = case
    found = tune.tune(
        path, aim, data, tmp_path / "out", goal=Goal(min_sqnr=90.0, max_bytes=10, max_energy=1e-9, min_integer=0.99)
    )
    assert not found.met
    assert "no trial meets the budget" in found.sentence
    assert "dB of 90" in found.sentence
    assert "bytes of 10" in found.sentence
    assert "mJ of 1e-09" in found.sentence
    assert (tmp_path / "out" / "model.onnx").exists()
    digests = {t.digest: t for t in found.trials if not t.problem}
    for digest in found.front:  # no other trial is better in every respect
        one = digests[digest]
        assert not any(
            t.drop <= one.drop and t.sqnr_db > one.sqnr_db and t.bytes <= one.bytes for t in digests.values()
        )


def test_time_that_is_over(case, tmp_path):
    path, aim, data = case
    found = tune.tune(path, aim, data, tmp_path / "out", goal=Goal(min_sqnr=90.0, time_budget=1e-9))
    assert len(found.trials) == 1
    assert "time budget" in found.sentence


def test_a_drop_without_labels_is_of_agreement(tmp_path):
    path = matmul(tmp_path / "m.onnx")
    data = [{"x": draw(50, 8, seed=i)} for i in range(4)]
    found = tune.tune(path, "generic", data, tmp_path / "out", goal=Goal(max_drop=0.05))
    left, right = (ort.InferenceSession(str(p)) for p in (path, tmp_path / "out" / "model.onnx"))
    agreed = np.mean([left.run(None, f)[0].argmax(-1) == right.run(None, f)[0].argmax(-1) for f in data])
    assert found.met
    assert found.trials[0].metric == "agreement with float"
    assert found.trials[0].value == pytest.approx(agreed)


def test_relative_drops():
    trial = Trial("t", "d", reference=0.8, value=0.796, drop=0.004)
    assert Goal(max_drop=0.005, relative=True).misses(trial) == []
    assert Goal(max_drop=0.0049, relative=True).misses(trial)
    assert Goal(max_drop=0.0039).misses(trial)


def test_refusals(tmp_path):
    path = matmul(tmp_path / "m.onnx")
    with pytest.raises(RecipeError, match="--max-drop or --min-sqnr"):
        tune.tune(path, "generic", [], tmp_path / "o", goal=Goal())
    with pytest.raises(RecipeError, match="give --calib"):
        tune.tune(path, "generic", None, tmp_path / "o", goal=Goal(max_drop=0.1))
    with pytest.raises(EdgeqError, match="holds no samples"):
        tune.tune(path, "generic", [], tmp_path / "o", goal=Goal(max_drop=0.1))


def test_the_command(case, tmp_path, run):
    path, aim, data = case
    np.savez(tmp_path / "d.npz", x=np.concatenate([feed["x"] for feed in data]))
    code, out, err = run("tune", path, "-t", aim, "--calib", tmp_path / "d.npz", "--min-sqnr", 24, "-o", tmp_path / "o")
    assert (code, err) == (0, "")
    assert "equalize" in out
    assert "meets the budget" in out
    small = ("--max-bytes", 10, "--json", "-q")
    code, out, _ = run(
        "tune", path, "-t", aim, "--calib", tmp_path / "d.npz", "--max-drop", "100%", *small, "-o", tmp_path / "o"
    )
    assert code == 1
    assert json.loads(out)["met"] is False
    code, _, err = run("tune", path, "--calib", tmp_path / "d.npz", "--max-drop", "little", "-o", tmp_path / "o")
    assert code == 2
    assert "0.5%" in err


def test_integer_share_counts_multiplications():
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]> g (float[2,4,5,5] x) => (float[2,3] z) {
        q = QuantizeLinear(x, s, u) d = DequantizeLinear(q, s, u) w = DequantizeLinear(c, s) a = Conv(d, w)
        p = GlobalAveragePool(a) f = Flatten(p) z = Gemm(f, v) }"""
    )
    arrays = {"s": np.float32(1), "u": np.uint8(0), "c": np.ones((6, 4, 3, 3), np.int8), "v": draw(6, 3)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in arrays.items())
    share = integer_share(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model)))
    conv, gemm = 2 * 6 * 3 * 3 * 4 * 9, 2 * 3 * 6
    assert share == pytest.approx(conv / (conv + gemm))
