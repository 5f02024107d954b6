"""Quantization-aware training and pruning of two networks on two sets: `python -m benchmarks.training [--peers]`.

The MobileNetV3-like network of the samples on scikit-learn's digits, and a small ResNet on glyphs (`benchmarks.
pictures`; `--task` has the other pairs): as each is rounded after training (PTQ), and trained further at several
widths, straight-through (STE), with learned steps (LSQ), and with the float model as teacher (+KD). Below 8 bits the
first and the last layer have 8. Each artifact is run in onnxruntime over pictures that neither training nor the choice
of an epoch saw, and its codes are held against those that were trained; all rows have the same passes over the same
pictures, and a network that lost half its channels two or four times as many in float before. `--peers` adds Brevitas
and torchao's QAT, with the teacher, from the same float weights, evaluated in torch; `--seeds 5` tells what is more
than chance: each row is trained so often, and stands with the mean's standard error.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pictures
from benchmarks.networks import network, remembering
from benchmarks.peers import ROOT, ensure

TASKS = ("digits-mobile", "glyphs-resnet", "digits-resnet", "glyphs-mobile")  # the first two by default
PEERS = ("brevitas", "torchao")
PASSES = {"digits": (80, 12), "glyphs": (12, 4)}
"""Over the training pictures: of the float network, and of each row."""
SMALLER, SMALLER_RATE = {"digits": 2, "glyphs": 4}, 8e-3
"""What a network that lost channels is trained with in float, as the new one that it is: times a row's passes, rate."""
RATES = {8: 2e-3, 4: 4e-3, 3: 5e-3, 2: 5e-3}
SETTINGS = {"scale_lr": 3e-3, "alpha": 0.7}
DIGITS = Path(__file__).resolve().parents[1] / "sample_models" / "digits.onnx"


@dataclass(frozen=True)
class Row:
    """bits: of weights and activations. kind: PTQ, STE, LSQ, or a peer's name.

    weight: an algorithm of `edgeq.weights`, "ttq" or "shared". sparse: 2 of 4. share: of the channels that go before.
    features: of the teacher too, the sums of residuals. seed: of the order of the pictures, and how they are moved.
    """

    task: str
    name: str
    bits: tuple[int, int] = (8, 8)
    kind: str = "LSQ"
    teacher: bool = True
    weight: str = "rtn"
    sparse: bool = False
    share: float = 0.0
    features: bool = False
    seed: int = 0


def settings(bits: tuple[int, int], epochs: int) -> Any:
    """Those of `fit`, the same for peers: fewer bits are trained at a higher rate."""
    from edgeq.train.fit import Fit

    return Fit(epochs=epochs, lr=RATES[min(bits)], **SETTINGS)


def rows(task: str, peers: bool) -> Iterator[Row]:
    for bits in ((8, 8), (4, 4), (3, 3), (2, 2)):
        name = f"W{bits[0]}A{bits[1]}"
        yield Row(task, f"{name} PTQ", bits, "PTQ")
        yield Row(task, f"{name} STE", bits, "STE", teacher=False)
        yield Row(task, f"{name} LSQ", bits, teacher=False)
        yield Row(task, f"{name} LSQ+KD", bits)
        for peer in PEERS if peers and bits != (8, 8) else ():
            yield Row(task, f"{name} {peer}+KD", bits, peer)
    yield Row(task, "W2A2 LSQ+KD+features", (2, 2), features=True)
    yield Row(task, "ternary, A8", weight="ternary")
    yield Row(task, "ternary of two scales (TTQ), A8", weight="ttq")
    yield Row(task, "binary, A8", weight="binary")
    yield Row(task, "16 shared values, A8", weight="shared")
    yield Row(task, "2:4, W8A8", sparse=True)
    yield Row(task, "half the channels, W8A8", share=0.5)


def floats(task: str, folder: Path, device: str) -> Path:
    """The float network as ONNX, and beside it its weights as torch has them and its pictures."""
    import onnx
    import torch
    from onnx import numpy_helper

    from edgeq.export import export
    from edgeq.train.fit import Fit, fit

    path, which = folder / f"{task}.onnx", task.partition("-")[0]
    torch.manual_seed(0)
    made, held = network(task), pictures_of(path)
    if not held.exists():
        pictures.write(which, folder)
    if task == "digits-mobile":
        have = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in onnx.load(DIGITS).graph.initializer}
        known = {name: have[name].reshape(tensor.shape) for name, tensor in made.state_dict().items() if name in have}
        made.load_state_dict(known, strict=False)
        path.write_bytes(DIGITS.read_bytes())
    else:
        _plain()
        made = made.to(device)
        fit(made, pictures.batches(held, device), pictures.score(held, device), Fit(epochs=PASSES[which][0], lr=4e-3))
        made = made.cpu()
        export(made.eval(), (pictures.read(held)[0][:2],), path, dynamic={"x": [0]})
    torch.save(made.state_dict(), path.with_suffix(".pt"))
    return path


def pictures_of(source: Path) -> Path:
    """The file of pictures beside a task's network."""
    return source.with_name(f"{source.stem.partition('-')[0]}.npz")


def rivalled(row: Row, source: Path, epochs: int) -> dict[str, Any]:
    """What a peer makes of the same network in its own environment."""
    script = ROOT / "benchmarks" / "peers" / f"{row.kind}_qat.py"
    command = [str(ensure(row.kind)), str(script), str(source.with_suffix(".pt"))]
    command += ["--bits", *map(str, row.bits), "--epochs", str(epochs), "--seed", str(row.seed)]
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{row.name}: {ran.stderr.strip().splitlines()[-1]}")
    return {"task": row.task, "row": row.name, "seed": row.seed, "bytes": 0, **json.loads(ran.stdout.splitlines()[-1])}


def trained(job: tuple[Row, Path, Path, int, str]) -> dict[str, Any]:
    """Make the artifact of a row in `folder`; its accuracy, size and seconds."""
    import torch

    import edgeq
    from edgeq import target as targets
    from edgeq.graph import io
    from edgeq.graph.prepare import prepare
    from edgeq.passes.prune_channels import prune_channels
    from edgeq.recipe import Override, Recipe
    from edgeq.train.fit import Fit, fit
    from edgeq.train.graph import TorchGraph
    from edgeq.train.norm import freeze, normable, normalize
    from edgeq.train.prune import sparsify
    from edgeq.train.qat import convert, copied, prepare_qat, with_bits

    row, source, folder, epochs, device = job
    if row.kind in PEERS:
        return rivalled(row, source, epochs)
    _plain()
    started = time.process_time()
    held = pictures_of(source)
    batches, score = pictures.batches(held, device, row.seed), pictures.score(held, device)
    few = pictures.read(held)[0][:256].split(32)
    model = prepare(io.load(source), 21)
    io.to_memory(model)
    graph = TorchGraph(model).eval().to(device)
    teacher = graph if row.features else remembering(graph, source)
    if row.share:
        smaller = prepare(io.load(source), 21)
        io.to_memory(smaller)
        prune_channels(smaller, row.share)
        module = TorchGraph(smaller)
        with torch.no_grad():
            normalize(module, normable(module), (module(batch) for batch in few))
        longer = Fit(epochs=SMALLER[held.stem] * epochs, lr=SMALLER_RATE)
        fit(module.to(device), batches, score, longer, teacher=teacher)
        freeze(module.cpu())
        model = copied(module)
    linear = [n.name or "" for n in model.graph if n.op_type in ("Conv", "Gemm", "MatMul")]
    narrow, signs = row.bits != (8, 8), row.weight in ("ternary", "ttq", "binary")
    wide: dict[str, Any] = {"act_type": "u8_8", "weight_type": "s8c_8"} if narrow else {}
    ends = tuple(Override(nodes=(n,), weight="rtn", **wide) for n in (linear[0], linear[-1]) if narrow or signs)
    recipe = Recipe(target="generic", weight=row.weight.replace("ttq", "ternary") if signs else "rtn", rule=ends)
    qat = prepare_qat(
        model,
        recipe,
        batches=few,
        target=with_bits(targets.load("generic"), *row.bits) if narrow else None,
        steps="fixed" if row.kind == "STE" else "lsq",
        centroids=16 if row.weight == "shared" else 0,
        two_scales=row.weight == "ttq",
    )
    if row.sparse:
        sparsify(qat, pattern=(2, 4))
    if row.kind != "PTQ":
        sums = [n.outputs[0].name or "" for n in model.graph if n.op_type == "Add"] if row.features else []
        chosen = settings(row.bits, epochs)
        fit(qat.to(device), batches, score, chosen, teacher=teacher if row.teacher else None, features=sums)
        qat.cpu()
    path = folder / f"{row.task}-{re.sub(r'[ :,()]+', '-', row.name)}-{row.seed}.onnx"
    edgeq.save(convert(qat), path)
    if apart := differing(qat, path):
        raise RuntimeError(f"{row.task}, {row.name}: {apart} integers of {path.name} are not those that were trained")
    return {
        "task": row.task, "row": row.name, "seed": row.seed, "accuracy": accuracy(path, held),
        "bytes": path.stat().st_size, "seconds": round(time.process_time() - started, 1), "path": str(path),
    }  # fmt: skip


def _plain() -> None:
    """One thread, and float32 that a GPU's kernels don't round to fewer bits."""
    import torch

    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False


def differing(qat: Any, path: Path) -> int:
    """How many stored codes of weights are others in the artifact than in the trained module."""
    import onnx
    from onnx import numpy_helper

    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    trained = {w.value: qat.quantizer(w.value).tensor(qat.constant(w.value)).data for w in qat.plan.weights}
    return sum(int((stored[f"{name}_q"].astype(int) != codes).sum()) for name, codes in trained.items())


def accuracy(path: Path, held: Path) -> float:
    """In onnxruntime, and kept from saturating where this machine's kernels would."""
    from edgeq.runners import cpu

    shown, labels = pictures.read(held)[2:]
    # onnxruntime 1.32 would make a QLinearConv of 2-bit codes, which has no kernel, and refuse the file
    running = cpu.open_session(path, config={"session.disable_quant_qdq": "1"} if "A2" in path.stem else {})
    (name,), right = running.inputs, 0
    for part, wanted in zip(shown.split(500), labels.split(500), strict=True):
        (logits,) = running.run({name: part.numpy()}).values()
        right += int((logits.argmax(1) == wanted.numpy()).sum())
    running.close()
    return right / len(labels)


def main(argv: list[str] | None = None) -> int:
    """Print a table, and with --json its rows in a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--longer", type=float, default=1, help="so many times as many passes as a row has by default")
    parser.add_argument("--seeds", type=int, default=1, help="train each row so many times; the table has the means")
    parser.add_argument("--peers", action="store_true", help="also Brevitas and torchao, in environments of their own")
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--only", action="append", help="rows whose name has this in it")
    parser.add_argument("--device", default="cpu", help="torch's name of where to train")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--wide", action="store_true", help="only what half the channels of full-size networks gain")
    args = parser.parse_args(argv)
    if args.wide:
        wide()
        return 0
    with tempfile.TemporaryDirectory(prefix="edgeq-training-") as name:
        folder = Path(name)
        chosen = args.task or TASKS[:2]
        wanted = [
            row
            for task in chosen
            for row in rows(task, args.peers)
            if any(part in row.name for part in args.only or [""])
        ]
        seeded = [replace(row, seed=seed) for row in wanted for seed in range(args.seeds if row.kind != "PTQ" else 1)]
        for peer in {row.kind for row in wanted} & set(PEERS):
            ensure(peer)
        with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
            made: dict[tuple[str, str], list[dict[str, Any]]] = {}
            floating = {task: pool.apply_async(floats, (task, folder, args.device)) for task in chosen}
            sources: dict[str, Path] = {}

            def jobs() -> Iterator[tuple[Row, Path, Path, int, str]]:
                for task in chosen:  # a network's rows as soon as it is there, the longest first, and the shortest last
                    sources[task] = floating[task].get()
                    epochs = round(PASSES[task.partition("-")[0]][1] * args.longer)
                    own = (row for row in seeded if row.task == task)
                    for row in sorted(own, key=lambda row: (row.kind == "PTQ", -row.share)):
                        yield row, sources[task], folder, epochs, args.device

            for m in pool.imap_unordered(trained, jobs()):
                made.setdefault((m["task"], m["row"]), []).append(m)
                print(f"{m['task']}: {m['row']}: {m['accuracy']:.4f} in {m['seconds']:.0f} s", flush=True)
        for task, source in sources.items():
            held = pictures_of(source)
            print(f"\n| {task} | accuracy | kB | s |\n|---|---|---|---|")
            print(f"| float | {accuracy(source, held):.4f} | {source.stat().st_size / 1e3:.0f} | |")
            for row in (r for r in wanted if r.task == task):
                m, found = made[task, row.name][0], [one["accuracy"] for one in made[task, row.name]]
                spread = f" ± {np.std(found, ddof=1) / len(found) ** 0.5:.4f}" if len(found) > 1 else ""
                print(f"| {row.name} | {np.mean(found):.4f}{spread} | {m['bytes'] / 1e3:.0f} | {m['seconds']:.0f} |")
            _speed(task, made, held)
        if args.json:
            args.json.write_text(json.dumps([m for found in made.values() for m in found], indent=1))
    return 0


def wide() -> None:
    """Full-size networks with all and with half the channels, both in int8: size and speed (weights are random)."""
    import edgeq
    from benchmarks import models, peers
    from benchmarks.measure import latency
    from edgeq.graph import io
    from edgeq.graph.prepare import prepare
    from edgeq.passes.prune_channels import prune_channels

    for name in ("mobilenetv2", "resnet50"):
        source = models.build(name, peers.cache() / "models")
        feeds = list(models.feeds(name, 8))
        with tempfile.TemporaryDirectory(prefix="edgeq-training-") as folder:
            halved = prepare(io.load(source), 21)
            prune_channels(halved, 0.5)
            io.save(halved, Path(folder) / "half.onnx")
            made = {"all": source, "half": Path(folder) / "half.onnx"}
            for key, path in made.items():
                made[key] = edgeq.quantize(path, "x86_64", feeds, Path(folder) / key, check=False).artifact
            found = latency(made, feeds[0], 1, base="all")
            sizes = {key: path.stat().st_size / 1e6 for key, path in made.items()}
        print(f"{name}: {sizes['all']:.1f} MB, with half {sizes['half']:.1f} MB, {found['half'][1]:.2f} times as fast")


def _speed(task: str, made: dict[tuple[str, str], list[dict[str, Any]]], held: Path) -> None:
    """How much faster the artifact with half the channels is."""
    from benchmarks.measure import latency, session

    both = {key: made.get((task, name)) for key, name in (("all", "W8A8 LSQ"), ("half", "half the channels, W8A8"))}
    if None in both.values():
        return
    paths = {key: Path(m[0]["path"]) for key, m in both.items() if m is not None}
    name = session(paths["all"], 1).get_inputs()[0].name
    found = latency(paths, {name: pictures.read(held)[2][:64].numpy()}, 1, base="all")
    (slow, _), (fast, ratio) = found["all"], found["half"]
    print(f"\n64 pictures, 1 thread: {slow * 1e3:.2f} ms, with half {fast * 1e3:.2f} ms ({ratio:.2f} times as fast)")


if __name__ == "__main__":
    raise SystemExit(main())
