"""Every Python and onnxruntime that edgeq is for: `nox` installs it alone, away from the source, and does the main job.

The interpreters have to be on the PATH; sessions of those that are missing are skipped.
"""

from pathlib import Path

import nox

PYTHONS = ("3.11", "3.12", "3.13")
RUNTIMES = ("1.30", "1.31", "1.32")
SOURCE = Path(__file__).parent.resolve()
ALONE = "import edgeq, importlib.util as u; assert u.find_spec('torch') is None; print(edgeq.__path__[0])"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ("job", "sdist")


def main_job(session: nox.Session) -> None:
    """What is installed, and not the source, quantizes the sample within its budget; there is no torch."""
    work = session.create_tmp()
    session.chdir(work)  # `python -c` would find the source otherwise
    installed = session.run("python", "-c", ALONE, silent=True, env={"PYTHONPATH": ""}).strip()
    if Path(installed).is_relative_to(SOURCE / "edgeq"):
        session.error(f"{installed} is the source, not what was installed")
    samples = f"{installed}/_samples"
    data = ("--calib", f"{samples}/digits_calib.npz", "--eval", f"{samples}/digits.npz", "--labels", "label")
    budget = ("--max-drop", "0.01", "-o", f"{work}/out", "-q")
    session.run("edgeq", "quantize", f"{samples}/digits.onnx", *data, *budget, env={"PYTHONPATH": ""})


@nox.session(python=PYTHONS)
@nox.parametrize("onnxruntime", RUNTIMES)
def job(session: nox.Session, onnxruntime: str) -> None:
    """The wheel in an empty environment."""
    session.install(".", f"onnxruntime=={onnxruntime}.*")
    main_job(session)


@nox.session(python=PYTHONS[0])
def sdist(session: nox.Session) -> None:
    """The source distribution in an empty environment, and the wheel that is made of it."""
    session.install("build")
    session.run("python", "-m", "build", "--outdir", f"{session.create_tmp()}/dist", str(SOURCE))
    (packed,) = Path(session.create_tmp()).glob("dist/*.tar.gz")
    session.run("python", "-m", "pip", "uninstall", "-qy", "build", "pyproject_hooks")
    session.install(str(packed))
    main_job(session)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """All tests; what needs a runtime that isn't there is skipped. It is slow, so that it has to be asked for."""
    session.install(".", "pytest", "pytest-xdist", "pytest-timeout", "hypothesis", "jinja2", "pyyaml")
    session.run("python", "-m", "pytest", *(session.posargs or ("tests",)))
