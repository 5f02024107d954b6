"""Quantization-aware training of tinypy with weights of 2 bits, and the ONNX file that it becomes.

    python -m benchmarks.tinypy_qat train --seconds 300 CODES.npz     (one GPU)
    python -m benchmarks.tinypy_qat check CODES.npz MODEL.onnx        (any CPU with onnxruntime)

All 57 linear weights have a learned step for each 32 weights (LSQ); the float model is teacher. The text is the Python
source that the interpreter and its packages bring, without the modules of eval.bin. `check` writes 2-bit MatMulNBits
with the very codes and scales that were trained and measures bits per byte over the first 100 windows of eval.bin.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import sysconfig
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgeq.types import PerBlock, QParams, QSpec, QTensor, Solution

FOLDER = Path(__file__).resolve().parents[1] / "sample_models" / "tinypy"
BLOCK, BATCH, CONTEXT, VOCAB = 32, 256, 512, 256
SPEC = QSpec("int2", granularity=PerBlock(1, BLOCK))


def _script(name: str) -> ModuleType:
    """A script of the sample's folder as a module."""
    spec = importlib.util.spec_from_file_location(f"tinypy_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where torch.compile looks for it
    spec.loader.exec_module(module)
    return module


def corpus() -> bytes:
    """Python source of this interpreter, as the sample's own corpus is chosen: nothing of eval.bin is in it."""
    paths = sysconfig.get_paths()
    chosen = {
        text
        for _, held, text in _script("make_corpus").files(paths["stdlib"], paths["purelib"])
        if not held and 400 <= len(text) <= 400_000 and text.isascii()
    }
    ordered = sorted(chosen)
    return b"\0".join(ordered[i] for i in np.random.default_rng(0).permutation(len(ordered)))


def train(out: Path, seconds: float, lr: float, scale_lr: float, alpha: float) -> None:
    """AdamW with a rate that falls linearly; alpha: how much of the loss is the teacher's."""
    import torch
    from torch.func import functional_call
    from torch.nn import functional

    from edgeq.train.fake import FakeQuantize
    from edgeq.weights import mse

    script = _script("train")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = script.TinyPy()
    with np.load(FOLDER / "tinypy_fp16.npz") as held:
        model.load_state_dict({name: torch.from_numpy(held[name].astype(np.float32)) for name in held.files})
    model = model.to(device)
    text = torch.from_numpy(np.frombuffer(corpus(), np.uint8).copy()).to(device)
    held_out = torch.from_numpy(
        np.frombuffer((FOLDER / "eval.bin").read_bytes(), np.uint8)[: 100 * CONTEXT + 1].copy()
    ).to(device)
    print(f"{len(text)} bytes of text; float {script.bits_per_byte(model, held_out):.4f}", flush=True)
    float_weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    linear = [name for name, p in model.named_parameters() if p.dim() == 2 and name != "tok.weight"]
    sizes = [float_weights[name].numel() // BLOCK for name in linear]
    flat = torch.cat([float_weights[name].reshape(-1, BLOCK) for name in linear])  # one quantizer for all blocks
    quantizer = FakeQuantize(SPEC, tuple(flat.shape))
    quantizer.start(mse.quantize(flat.cpu().numpy(), SPEC, None).params)
    quantizer.to(device)
    flat = torch.nn.Parameter(flat)
    rest = {name: p for name, p in model.named_parameters() if name not in linear}

    def weights() -> dict[str, torch.Tensor]:
        parts = quantizer(flat).split(sizes)
        return rest | {n: part.view_as(float_weights[n]) for n, part in zip(linear, parts, strict=True)}

    call = torch.compile(lambda w, x: functional_call(model, w, (x,)))
    groups = [
        {"params": [flat, *rest.values()], "rate": lr},
        {"params": [quantizer.scale], "rate": scale_lr},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    offsets = torch.arange(CONTEXT + 1, device=device)
    start, step = 0.0, 0
    while not start or (done := (time.time() - start) / seconds) < 1:
        rate = min(1, step / 100) * max(0.01, 1 - done) if start else 0.0
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * rate
        at = torch.randint(0, len(text) - CONTEXT - 1, (BATCH, 1), device=device)
        sample = text[at + offsets].long()
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                wanted = call(float_weights, sample[:, :-1]).float().log_softmax(-1)
            found = call(weights(), sample[:, :-1]).float().log_softmax(-1)
        hard = functional.nll_loss(found.view(-1, VOCAB), sample[:, 1:].reshape(-1))
        soft = functional.kl_div(found, wanted, log_target=True, reduction="none").sum(-1).mean()
        loss = (1 - alpha) * hard + alpha * soft
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([flat, *rest.values()], 1.0)
        optimizer.step()
        step += 1
        start = start or time.time()  # the first step compiles
        if step % 500 == 0:
            print(f"{step}: {hard.item() / math.log(2):.4f} bits, {soft.item() / math.log(2):.4f} apart", flush=True)
    with torch.no_grad():
        quantizer.scale.copy_(quantizer.step().half().float())  # as the file holds it
        quantizer.eval()
        params = quantizer.params()
        rounded = quantizer(flat)
        codes = (rounded / quantizer.step()).round().to(torch.int8).cpu().numpy()
        model.load_state_dict(weights())
        print(json.dumps({"steps": step, "lr": lr, "bits_per_byte": script.bits_per_byte(model, held_out)}))
    made: dict[str, Any] = {name: p.detach().cpu().numpy() for name, p in rest.items()}
    ends = np.cumsum(sizes)[:-1]
    for name, code, scale in zip(linear, np.split(codes, ends), np.split(params.scale, ends), strict=True):
        shape = tuple(float_weights[name].shape)
        made |= {f"{name}.codes": code.reshape(shape), f"{name}.scale": scale.reshape(shape[0], -1).astype(np.float16)}
    np.savez_compressed(out, **made)


def check(codes: Path, path: Path) -> None:
    """Write the ONNX file of what was trained and measure it. Raises SystemExit over 1.35 bits per byte."""
    import onnx_ir as ir
    import onnxruntime as ort

    import edgeq
    from edgeq import target as targets
    from edgeq.graph.prepare import prepare
    from edgeq.passes import weight_only
    from edgeq.planning.planner import plan
    from edgeq.recipe import Recipe
    from sample_models import tinypy

    with np.load(codes) as held:
        made = {name: held[name] for name in held.files}
    model = prepare(ir.serde.deserialize_model(tinypy.model()), 21)
    for name, value in model.graph.initializers.items():
        if name in made:
            value.const_value = ir.tensor(made[name], name=name)
    aim = targets.load("generic")
    planned = plan(model, aim, Recipe(target="generic", method="weight_only", weight="rtn", bits=2, block=BLOCK))
    weights = {}
    for row in planned.weights:
        if f"{row.value}.codes" in made:
            spec = QSpec("int2", granularity=PerBlock(0, BLOCK))
            scale = np.ascontiguousarray(made[f"{row.value}.scale"].T.astype(np.float32))
            params = QParams(scale, np.zeros(scale.shape, np.int32), spec)
            weights[row.node, row.index] = QTensor(np.ascontiguousarray(made[f"{row.value}.codes"].T), params)
        else:
            from edgeq.weights import rtn

            array = model.graph.initializers[row.value].const_value.numpy()  # type: ignore[union-attr]
            weights[row.node, row.index] = rtn.quantize(array, row.spec, None)
    edgeq.save(weight_only.apply(model, planned, Solution({}, weights, {}), aim), path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = tinypy.bits_per_byte(lambda tokens: session.run(None, {"tokens": tokens})[0])
    nodes = sum(n.op_type == "MatMulNBits" for n in ir.load(path).graph)
    print(f"{found:.4f} bits per byte in onnxruntime, {nodes} MatMulNBits, {path.stat().st_size / 1e6:.2f} MB")
    raise SystemExit(found > 1.35)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tinypy_qat", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("out", type=Path)
    for name, default in (("seconds", 260.0), ("lr", 1.5e-3), ("scale-lr", 1.5e-4), ("alpha", 0.7)):
        training.add_argument(f"--{name}", type=float, default=default)
    checking = commands.add_parser("check")
    checking.add_argument("codes", type=Path)
    checking.add_argument("model", type=Path)
    args = parser.parse_args(argv)
    if args.command == "train":
        train(args.out, args.seconds, args.lr, args.scale_lr, args.alpha)
    else:
        check(args.codes, args.model)


if __name__ == "__main__":
    main()
