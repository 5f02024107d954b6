"""The HTML report: its numbers are those of report.json, it loads and runs nothing, and names can't break out of it."""

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgeq
from edgeq.errors import EdgeqError
from edgeq.report.drawing import HEIGHT, bars, curve, decibel_axis, lay_out
from edgeq.report.page import facts, page
from edgeq.report.schema import DrawnNode, Report, dump
from tests.require import require

SAMPLES = Path(__file__).resolve().parents[2] / "sample_models"
DATA = {"calib": str(SAMPLES / "digits_calib.npz"), "eval_data": str(SAMPLES / "digits.npz"), "labels": "label"}
HOSTILE = "</title><script>alert(1)</script>\x1b[31m\u202e'\"&"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("report")
    for name, calibrator in (("one", "mse"), ("two", "minmax")):
        edgeq.quantize(
            SAMPLES / "digits.onnx", "generic", output=base / name, calibrator=calibrator, layers=True, **DATA
        )
    return [base / "one", base / "two"]


class Text(HTMLParser):
    """The page's text, and its tags."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags = "", []
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_data(self, data):
        self.text += f" {data}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_numbers_are_those_of_the_report(folders):
    seen = Text(page(folders[:1]))
    report = json.loads((folders[0] / "report.json").read_text())
    (output,) = report["outputs"]
    for number in (
        f"{report['metric']['quantized']:.4f}",
        f"{output['sqnr_db']:.1f} dB",
        f"{output['cosine']:.6f}",
        f"{report['nodes']['integer']} of {report['nodes']['total']}",
        f"{report['artifact']['bytes'] / report['model']['bytes']:.2f}×",
        report["artifact"]["sha256"],
        report["versions"]["onnxruntime"],
    ):
        assert number in seen.text, number
    for node in report["nodes"]["float"]:
        assert f"{node['name']} ({node['op']})" in seen.text
    marks = [attrs for tag, attrs in seen.tags if tag == "g" and "transform" in attrs]
    assert len(marks) == len(report["graph"]) == report["nodes"]["total"]
    assert sum(m["class"] in ("integer", "folded", "dynamic") for m in marks) == report["nodes"]["integer"]


def test_the_graph_of_the_report_is_the_models(folders):
    report = msgspec.json.decode((folders[0] / "report.json").read_bytes(), type=Report)
    assert all(i < k for k, node in enumerate(report.graph) for i in node.reads)
    assert sum(not node.reads for node in report.graph) == 1  # one input, so one node reads no other node
    assert all(r.low <= r.lo or r.clipped > 0 or r.lo > r.low - r.scale for r in report.ranges)
    assert all(sum(r.counts) > 0 for r in report.ranges)
    minmax = msgspec.json.decode((folders[1] / "report.json").read_bytes(), type=Report)
    assert not any(r.clipped or r.counts for r in minmax.ranges)


def test_the_drift_matrix_and_the_npu_are_shown(folders, tmp_path):
    edgeq.quantize(SAMPLES / "digits.onnx", "generic", output=tmp_path / "out", also=["x86_64", "openvino"], **DATA)
    seen = Text(page([tmp_path / "out"]))
    matrix = json.loads((tmp_path / "out" / "report.json").read_text())["verification"]["matrix"]
    assert [row["target"] for row in matrix] == ["generic", "x86_64", "openvino"]
    for row in matrix:
        (output,) = row["outputs"]
        same = "yes" if output["identical"] else "no"
        assert f"logits {output['sqnr_db']:.1f} dB {output['steps']} {same}" in seen.text
    report = msgspec.json.decode((folders[0] / "report.json").read_bytes(), type=Report)
    npu = {"accelerator": "ethos-u55-128", "npu_operators": 54, "cpu_operators": 2, "sram_kib": 9.1, "cycles": 131456}
    (fact,) = [f for f in facts(msgspec.structs.replace(report, compiled=npu)) if f[0] == "On the NPU"]
    assert fact[1:] == ("54 of 56", "ethos-u55-128, 9.1 KiB SRAM, 131,456 cycles")


def test_two_reports_are_compared(folders):
    seen = Text(page(folders))
    rows = [attrs for tag, attrs in seen.tags if tag == "tr" and attrs.get("class") == "differs"]
    assert rows
    assert "recipe: calibrator mse minmax" in seen.text
    assert len([1 for tag, _ in seen.tags if tag == "polyline"]) == 2


def test_it_loads_and_runs_nothing(folders):
    html = page(folders)
    seen = Text(html)
    assert not [tag for tag, _ in seen.tags if tag in ("script", "iframe", "img", "object", "form", "base")]
    assert not [a for _, attrs in seen.tags for a in attrs if a.startswith("on")]
    links = [v for _, attrs in seen.tags for k, v in attrs.items() if k in ("href", "src")]
    assert set(links) == {"#content", "data:,"}
    assert "default-src 'none'" in html
    assert "url(" not in html
    ids = [attrs["id"] for _, attrs in seen.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    labels = {v for _, attrs in seen.tags for k, v in attrs.items() if k == "aria-labelledby"}
    assert labels <= set(ids)


def test_hostile_names_are_text(folders, tmp_path):
    report = json.loads((folders[0] / "report.json").read_text())

    def poison(value):
        match value:
            case dict():
                return {k: poison(v) for k, v in value.items()}
            case list():
                return [poison(v) for v in value]
            case str():
                return value + HOSTILE
        return value

    for kept in ("graph", "ranges", "outputs", "warnings", "recipe", "versions", "nodes", "metric", "model"):
        report[kept] = poison(report[kept])
    report["warnings"] = [HOSTILE]
    (tmp_path / "report.json").write_text(json.dumps(report))
    html = page([tmp_path])
    assert not [tag for tag, _ in Text(html).tags if tag == "script"]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", html)


def test_a_folder_without_a_report_is_one_line(tmp_path):
    with pytest.raises(EdgeqError, match="give a folder"):
        page([tmp_path])
    (tmp_path / "report.json").write_text('{"schema_version": 1}')
    with pytest.raises(EdgeqError, match="not a report of this version"):
        page([tmp_path])


def test_a_bare_report_has_a_page(folders, tmp_path):
    report = msgspec.json.decode((folders[0] / "report.json").read_bytes(), type=Report)
    bare = msgspec.structs.replace(
        report, verification=None, outputs=(), metric=None, runtime=None, graph=(), ranges=()
    )
    (tmp_path / "report.json").write_bytes(dump(bare))
    assert "not verified" in Text(page([tmp_path])).text
    assert [name for name, _, _ in facts(bare)] == ["Size", "Integer nodes"]


def test_chromium_shows_it_without_complaint(folders, tmp_path):
    require("chromium", "apt install chromium", lambda: shutil.which("chromium") is not None)
    file = tmp_path / "report.html"
    file.write_text(page(folders))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    assert Text(done.stdout).text == Text(file.read_text()).text


graphs = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        *[st.sets(st.integers(0, max(i - 1, 0)), max_size=3) if i else st.just(set()) for i in range(n)]
    )
)


@given(graphs)
def test_no_two_nodes_share_a_place_and_edges_go_right(reads):
    nodes = [DrawnNode(str(i), "Add", "float", "", tuple(sorted(r))) for i, r in enumerate(reads)]
    made = lay_out(nodes)
    places = [(dot.x, dot.y) for dot in made.dots]
    assert len(set(places)) == len(nodes)
    assert all(places[i][0] < places[k][0] for k, node in enumerate(nodes) for i in node.reads)
    assert max(x for x, _ in places) < made.width
    assert max(y for _, y in places) < made.height
    assert len(made.paths) == sum(len(r) for r in reads)


@given(st.lists(st.none() | st.floats(-400, 400), max_size=30))
def test_every_point_of_a_curve_is_in_its_box(values):
    low, high, marks = decibel_axis([values])
    assert len(marks) <= 12
    line = curve([("n", v) for v in values], low, high)
    assert all(0 <= y <= HEIGHT for _, y, _ in line.dots)
    for (_, y, label), value in zip(line.dots, values, strict=True):
        if value is None:
            assert (y, label) == (0, "n: exact")


def test_bars_show_where_the_range_is_cut():
    made = bars([0, 1, 10, 0], (-2.0, 2.0), (-1.0, 5.0))
    assert (made.left, made.right) == (25.0, 100.0)
    assert made.path.count("M") == 2


def test_what_each_node_costs_is_drawn(tmp_path):
    made = edgeq.quantize(SAMPLES / "digits.onnx", "generic", output=tmp_path / "o", rank=True, **DATA)
    seen = Text(page([made.folder]))
    rows = made.report.sensitivity
    assert f"{rows[0].name} {rows[0].op} {-10 * math.log10(rows[0].error):.1f} dB" in seen.text
    share = round(100 * rows[0].error / sum(row.error for row in rows), 1)
    assert ("i", {"style": f"width:{share}%"}) in seen.tags
