"""Every Python and onnxruntime that edgeq is for: `nox` builds the wheel, installs it alone, and runs the main job.

`nox -s job` needs the interpreters on the PATH; those that are missing are skipped.
"""

import nox

PYTHONS = ("3.11", "3.12", "3.13")
RUNTIMES = ("1.30", "1.31", "1.32")
nox.options.error_on_missing_interpreters = False


@nox.session(python=PYTHONS)
@nox.parametrize("onnxruntime", RUNTIMES)
def job(session: nox.Session, onnxruntime: str) -> None:
    """The wheel in an empty environment, without torch: quantize the packaged sample within its budget."""
    session.install(".", f"onnxruntime=={onnxruntime}.*")
    samples = session.run(
        "python", "-c", "import edgeq; print(edgeq.__path__[0] + '/_samples')", silent=True
    ).strip()  # fmt: skip
    data = ("--calib", f"{samples}/digits_calib.npz", "--eval", f"{samples}/digits.npz", "--labels", "label")
    budget = ("--max-drop", "0.01", "-o", f"{session.create_tmp()}/out", "-q")
    session.run("edgeq", "quantize", f"{samples}/digits.onnx", *data, *budget)
    session.run("python", "-c", "import importlib.util; assert importlib.util.find_spec('torch') is None")
