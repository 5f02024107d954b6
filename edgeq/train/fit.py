"""A plain training loop, to use or to replace: Adam, cosine schedule, optional teacher, best checkpoint, resumable.

Steps of quantizers learn at `scale_lr` times their size, for Adam moves all that it trains as far and a step of eight
bits is a fraction of one of two; offsets, which are codes, at `scale_lr`, and all else at `lr`. With a teacher the loss
is (1 - a) · loss(y, labels) + a · T² · KL(softmax(teacher / T) ‖ softmax(y / T)) (Hinton et al., 2015), and `loss` may
be None. Features f, values inside both graphs (FitNets, Romero et al., 2015), add b · the mean of |f - teacher|² /
|teacher|².

In the end the means and variances of normalizations are measured anew, on the weights that are left.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeq.errors import RecipeError
from edgeq.files import replacing
from edgeq.train.coded import Shared, Signs, TwoScales
from edgeq.train.fake import TINY, FakeQuantize
from edgeq.train.graph import TorchGraph
from edgeq.train.norm import reestimate
from edgeq.train.qat import Batch, call
from edgeq.types import Progress, silent

QUANTIZERS = (FakeQuantize, Signs, TwoScales, Shared)
LAST = 0.01
"""What is left of the rates in the end."""
Loss = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Fit:
    """epochs: passes over the batches. patience: epochs without a better score before it ends; 0 for never.

    alpha, temperature: of distillation from logits; beta: of that from features. measured: batches at most that
    normalizations are measured on in the end; 0 leaves them their running averages.
    """

    epochs: int = 10
    lr: float = 1e-3
    scale_lr: float = 3e-3
    weight_decay: float = 0.0
    patience: int = 0
    alpha: float = 0.5
    temperature: float = 2.0
    beta: float = 1.0
    measured: int = 16
    seed: int = 0


@dataclass
class Trained:
    """scores: of each epoch, higher is better. best: the epoch whose weights the module now holds."""

    scores: list[float]
    best: int


def fit(
    module: nn.Module,
    batches: Callable[[], Iterable[tuple[Batch, Tensor]]],
    score: Callable[[nn.Module], float],
    settings: Fit = Fit(),
    *,
    loss: Loss | None = functional.cross_entropy,
    teacher: nn.Module | None = None,
    features: Sequence[str] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Trained:
    """Train a module and leave the weights of its best epoch in it.

    batches: called for each epoch, yields (inputs, labels). score: of the module in evaluation mode, higher is better.
    features: names of values that are to be as the teacher's; both are a TorchGraph then. checkpoint: a file to go on
    from and to save each epoch to. Raises RecipeError with neither loss nor teacher, for a checkpoint of other
    settings, or for features that the two do not both have, in one shape.
    """
    if loss is None and teacher is None:
        raise RecipeError("nothing to train for: give a loss, a teacher, or both")
    for graph in (module, teacher) if features else ():
        if not isinstance(graph, TorchGraph):
            raise RecipeError("features are values of graphs: module and teacher must both be a TorchGraph")
        graph.kept = dict.fromkeys(features, torch.empty(0))
    torch.manual_seed(settings.seed)
    kinds = {parameter.device.type for parameter in module.parameters()}
    optimizer = torch.optim.Adam(_groups(module, settings), fused=kinds <= {"cpu", "cuda"})
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: LAST + (1 - LAST) * (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
    )
    done = Trained([], -1)
    kept = {k: v.clone() for k, v in module.state_dict().items()}
    path = Path(checkpoint) if checkpoint is not None else None
    if path is not None and path.exists():
        kept = _resume(path, module, optimizer, schedule, settings, done)
    for epoch in range(len(done.scores), settings.epochs):
        if settings.patience and epoch - done.best > settings.patience:
            break
        module.train()
        for inputs, labels in batches():
            made = call(module, inputs)
            optimizer.zero_grad()
            aim = _objective(made, labels, inputs, loss, teacher, settings)
            (aim + settings.beta * _apart(module, teacher) if features else aim).backward()
            optimizer.step()
        schedule.step()
        module.eval()
        with torch.no_grad():
            done.scores.append(score(module))
        if done.best < 0 or done.scores[-1] > done.scores[done.best]:
            done.best = epoch
            kept = {k: v.clone() for k, v in module.state_dict().items()}
        if path is not None:
            _save(path, module, optimizer, schedule, settings, done, kept)
        progress("train", epoch + 1, settings.epochs)
    for graph in (module, teacher) if features else ():
        graph.kept = {}  # type: ignore[union-attr]
    module.load_state_dict(kept)
    reestimate(module, _calls(module, batches, settings.measured))
    module.eval()
    return done


def _calls(module: nn.Module, batches: Callable[[], Iterable[tuple[Batch, Tensor]]], most: int) -> Iterator[Any]:
    for inputs, _ in islice(batches() if most else (), most):
        yield call(module, inputs)


def _groups(module: nn.Module, settings: Fit) -> list[dict[str, Any]]:
    """What learns at one rate: all that is no quantizer's, and steps by powers of two of their sizes."""
    steps: dict[float, list[nn.Parameter]] = {}
    own = set()
    for quantizer in (m for m in module.modules() if isinstance(m, QUANTIZERS)):
        for name, parameter in quantizer.named_parameters(recurse=False):
            own.add(id(parameter))
            if parameter.requires_grad:
                steps.setdefault(1.0 if name == "zero_point" else _size(parameter), []).append(parameter)
    others = [p for p in module.parameters() if p.requires_grad and id(p) not in own]
    return [
        {"params": others, "lr": settings.lr, "weight_decay": settings.weight_decay},
        *({"params": alike, "lr": settings.scale_lr * size} for size, alike in steps.items()),
    ]


def _size(step: Tensor) -> float:
    return float(2.0 ** round(math.log2(max(float(step.detach().abs().mean()), TINY))))


def _objective(
    made: Any, labels: Tensor, inputs: Batch, loss: Loss | None, teacher: nn.Module | None, settings: Fit
) -> Tensor:
    if teacher is None:
        assert loss is not None
        return loss(made, labels)
    with torch.no_grad():
        wanted = call(teacher.eval(), inputs)
    t = settings.temperature
    soft = functional.kl_div(
        (made / t).log_softmax(-1), (wanted / t).log_softmax(-1), log_target=True, reduction="none"
    )
    distilled = t * t * soft.sum(-1).mean()
    return distilled if loss is None else (1 - settings.alpha) * loss(made, labels) + settings.alpha * distilled


def _apart(module: Any, teacher: Any) -> Tensor:
    """How far the kept values of two graphs are from each other, on the batch that both have just seen."""
    parts = []
    for name, theirs in teacher.kept.items():
        own = module.kept[name]
        if own.shape != theirs.shape or own.numel() == 0:
            raise RecipeError(f"feature {name!r}: not a value of both graphs in one shape; choose another")
        parts.append((own - theirs).square().mean() / theirs.square().mean().clamp(min=1e-12))
    return torch.stack(parts).mean()


def _save(
    path: Path, module: nn.Module, optimizer: Any, schedule: Any, settings: Fit, done: Trained, kept: dict[str, Tensor]
) -> None:
    state = {
        "settings": vars(settings),
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "scores": done.scores,
        "best": done.best,
        "kept": kept,
        "random": torch.get_rng_state(),
    }
    with replacing(path) as file:
        torch.save(state, file)


def _resume(
    path: Path, module: nn.Module, optimizer: Any, schedule: Any, settings: Fit, done: Trained
) -> dict[str, Tensor]:
    try:
        state = torch.load(path, weights_only=True)
        if state["settings"] != vars(settings):
            raise RecipeError(f"{path}: of a run with other settings; give another checkpoint file, or remove it")
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    except (RuntimeError, KeyError, EOFError, ValueError) as error:  # what torch raises for other modules and bad files
        raise RecipeError(f"{path}: not a checkpoint of this module ({type(error).__name__}); remove it") from None
    done.scores, done.best = list(state["scores"]), int(state["best"])
    torch.set_rng_state(state["random"])
    kept: dict[str, Tensor] = state["kept"]
    return kept
