"""Train tinypy on one GPU: `train.py SECONDS OUT_FOLDER`, with train.xz and eval.bin of make_corpus.py beside it."""

import json
import lzma
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIM, LAYERS, HEADS, FFN, VOCAB, CONTEXT = 256, 8, 4, 768, 256, 512
THETA, EPS = 1e4, 1e-5
BATCH, RATE, WARMUP = 256, 3e-3, 200
HERE = Path(__file__).parent


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, EPS)


def rotary(length: int, head: int, device: torch.device) -> tuple[Tensor, Tensor]:
    frequency = THETA ** (-torch.arange(0, head, 2, device=device).float() / head)
    angle = torch.outer(torch.arange(length, device=device).float(), frequency)
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def linear(n_in: int, n_out: int) -> nn.Linear:
    return nn.Linear(n_in, n_out, bias=False)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn_norm, self.ffn_norm = RMSNorm(DIM), RMSNorm(DIM)
        self.wq, self.wk, self.wv, self.wo = (linear(DIM, DIM) for _ in range(4))
        self.w1, self.w2, self.w3 = linear(DIM, FFN), linear(FFN, DIM), linear(DIM, FFN)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        h = self.attn_norm(x)
        q, k, v = (w(h).view(batch, length, HEADS, DIM // HEADS).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.wo(mixed.transpose(1, 2).reshape(batch, length, DIM))
        h = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h))


class TinyPy(nn.Module):
    """Tokens int64 [B, T] → logits [B, T, 256]."""

    def __init__(self) -> None:
        super().__init__()
        self.tok = nn.Embedding(VOCAB, DIM)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = RMSNorm(DIM)
        self.out = linear(DIM, VOCAB)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith(("wo.weight", "w2.weight"))
                nn.init.normal_(p, 0, 0.02 / (math.sqrt(2 * LAYERS) if residual else 1))

    def forward(self, tokens: Tensor) -> Tensor:
        cos, sin = rotary(tokens.shape[1], DIM // HEADS, tokens.device)
        h = self.tok(tokens)
        for layer in self.layers:
            h = layer(h, cos.to(h.dtype), sin.to(h.dtype))
        return self.out(self.norm(h))


@torch.no_grad()
def bits_per_byte(model: TinyPy, text: Tensor) -> float:
    """Over all non-overlapping windows of CONTEXT bytes of `text`."""
    model.eval()
    n = (len(text) - 1) // CONTEXT
    inputs, targets = text[: n * CONTEXT].view(n, CONTEXT).long(), text[1 : n * CONTEXT + 1].view(n, CONTEXT).long()
    total = 0.0
    for x, y in zip(inputs.split(128), targets.split(128), strict=True):
        total += F.cross_entropy(model(x).view(-1, VOCAB), y.reshape(-1), reduction="sum").item()
    model.train()
    return total / (n * CONTEXT) / math.log(2)


def train(model: TinyPy, text: Tensor, held_out: Tensor, seconds: float) -> int:
    """AdamW, linear warm-up, constant until half of the time, then linear decay; returns the number of steps."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=True)
    compiled, offsets = torch.compile(model), torch.arange(CONTEXT + 1, device=text.device)
    start, step = time.time(), 0
    while (done := (time.time() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, step / WARMUP) * (1 if done < 0.5 else max(0.02, 2 * (1 - done)))
        at = torch.randint(0, len(text) - CONTEXT - 1, (BATCH, 1), device=text.device)
        sample = text[at + offsets].long()
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(compiled(sample[:, :-1]).view(-1, VOCAB), sample[:, 1:].reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 500 == 0:
            print(
                step, f"loss {loss.item() / math.log(2):.4f} held out {bits_per_byte(model, held_out):.4f}", flush=True
            )
    return step


def main() -> None:
    seconds, out = float(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    raw = lzma.decompress((HERE / "train.xz").read_bytes()), (HERE / "eval.bin").read_bytes()
    text, held_out = (torch.from_numpy(np.frombuffer(b, np.uint8).copy()).cuda() for b in raw)
    model = TinyPy().cuda()
    steps = train(model, text, held_out, seconds)
    half = {name: value.half().cpu().numpy() for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value).float() for name, value in half.items()})
    config = {"dim": DIM, "layers": LAYERS, "heads": HEADS, "ffn": FFN, "vocab": VOCAB, "context": CONTEXT}
    config |= {"rope_theta": THETA, "norm_eps": EPS, "steps": steps, "eval_bpb": bits_per_byte(model, held_out)}
    config["params"] = sum(p.numel() for p in model.parameters())
    np.savez(out / "tinypy_fp16.npz", **half)
    (out / "tinypy.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
