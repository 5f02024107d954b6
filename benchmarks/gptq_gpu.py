"""GPTQ of one large layer on a GPU: `python -m benchmarks.gptq_gpu [--size 4096]`. Needs torch and numpy.

edgeq's against a straightforward torch implementation of the published algorithm (Cholesky form, blocks of 128, the
scale of each group of 32 by absmax), on the same weight and Hessian, in turns. Printed: median seconds of each, and the
error of the layer's output.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

import torch

from edgeq.train.gptq_cuda import solve
from edgeq.types import QSpec

GROUP, BLOCK = 32, 128


def published(w: torch.Tensor, h: torch.Tensor, spec: QSpec, group: int) -> torch.Tensor:
    """The dequantized weight (N, K), by the recurrence as it is printed."""
    k = w.shape[1]
    w, out = w.clone(), torch.zeros_like(w)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for i1 in range(0, k, BLOCK):
        i2 = min(i1 + BLOCK, k)
        w1, err1, hinv1 = w[:, i1:i2].clone(), torch.zeros_like(w[:, i1:i2]), inverse[i1:i2, i1:i2]
        for i in range(i2 - i1):
            if (i1 + i) % group == 0:
                scale = w1[:, i : i + group].abs().amax(1) / spec.qmax
            q = torch.clamp(torch.round(w1[:, i] / scale), spec.qmin, spec.qmax) * scale
            out[:, i1 + i] = q
            err = (w1[:, i] - q) / hinv1[i, i]
            w1[:, i:] -= err.unsqueeze(1).matmul(hinv1[i, i:].unsqueeze(0))
            err1[:, i] = err
        w[:, i2:] -= err1.matmul(inverse[i1:i2, i2:])
    return out


def ours(w: torch.Tensor, h: torch.Tensor, spec: QSpec, group: int) -> torch.Tensor:
    codes, scale = solve(w.T.contiguous(), h, spec, group)
    return (codes * scale.repeat_interleave(group, 0)).T


def timed(call: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    made = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, made


def main(argv: list[str] | None = None) -> int:
    """Print one line of JSON. Returns 1 when edgeq's is slower or worse."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gptq_gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    generator = torch.Generator(device).manual_seed(0)
    size, spec = args.size, QSpec("int4")
    w = torch.randn(size, size, generator=generator, device=device)
    x = torch.randn(2 * size, size, generator=generator, device=device)
    x = x @ torch.randn(size, size, generator=generator, device=device) / size**0.5 + 0.3 * x
    h = x.T @ x / len(x)
    h.diagonal().add_(0.01 * h.diagonal().mean())
    seconds: dict[str, list[float]] = {"edgeq": [], "published": []}
    errors: dict[str, float] = {}
    for _ in range(args.rounds + 1):
        for name, method in (("edgeq", ours), ("published", published)):
            took, made = timed(lambda m=method: m(w, h, spec, GROUP))  # type: ignore[misc]
            seconds[name].append(took)
            errors[name] = float((((w - made) @ h) * (w - made)).sum() / ((w @ h) * w).sum())
    row = {f"{name}_seconds": round(median(took[1:]), 4) for name, took in seconds.items()}
    row |= {f"{name}_error": round(error, 6) for name, error in errors.items()}
    print(json.dumps({"device": torch.cuda.get_device_name() if device == "cuda" else device, "size": size, **row}))
    return int(row["edgeq_seconds"] > row["published_seconds"] or errors["edgeq"] > errors["published"])


if __name__ == "__main__":
    raise SystemExit(main())
