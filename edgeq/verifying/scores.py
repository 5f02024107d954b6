"""The task's own metric of reference and artifact, as samples stream by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edgeq.data import Dataset, load_object
from edgeq.errors import CalibrationError
from edgeq.report.schema import Metric

Outputs = Mapping[str, np.ndarray]
MetricFunction = Callable[[list[dict[str, np.ndarray]], dict[str, np.ndarray]], float]


@dataclass
class Scores:
    """The task metric of both models: top-1 against labels as it streams, or a function over all outputs at the end."""

    labels: np.ndarray | None = None
    label_name: str = ""
    function: MetricFunction | None = None
    name: str = ""
    hits: list[int] = field(default_factory=lambda: [0, 0])
    kept: tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]] = field(default_factory=lambda: ([], []))
    seen: int = 0

    def update(self, reference: Outputs, quantized: Outputs) -> None:
        if self.labels is not None:
            rows = 0
            for side, outputs in enumerate((reference, quantized)):
                scores = next(iter(outputs.values()))
                scores = scores.reshape(-1, scores.shape[-1])
                rows = len(scores)
                wanted = self.labels[self.seen : self.seen + rows].reshape(-1)
                self.hits[side] += int((scores.argmax(-1)[: len(wanted)] == wanted).sum())
            self.seen += rows
        elif self.function is not None:
            for side, outputs in enumerate((reference, quantized)):
                self.kept[side].append({k: np.array(v) for k, v in outputs.items()})

    def result(self, extras: dict[str, np.ndarray]) -> Metric | None:
        if self.labels is not None:
            if self.labels.size != self.seen:
                raise CalibrationError(
                    f"{self.label_name!r} holds {self.labels.size} labels for {self.seen} predictions"
                )
            float_score, quantized = (h / max(self.seen, 1) for h in self.hits)
            return Metric(f"top-1 ({self.label_name})", float_score, quantized, float_score - quantized)
        if self.function is not None:
            try:
                float_score, quantized = (float(self.function(k, extras)) for k in self.kept)
            except Exception as error:  # the user's own code may raise anything
                raise CalibrationError(f"metric {self.name} failed: {type(error).__name__}: {error}") from None
            return Metric(self.name, float_score, quantized, float_score - quantized)
        return None


@dataclass
class Agreement:
    """How often the greatest element of each row of the first output is where the float model has it.

    A metric function: called with float's outputs first, then with the artifact's.
    """

    reference: np.ndarray | None = None
    __name__ = "agreement with float"

    def __call__(self, outputs: list[dict[str, np.ndarray]], extras: dict[str, np.ndarray]) -> float:
        tops = np.concatenate([next(iter(out.values())).argmax(-1).reshape(-1) for out in outputs])
        if self.reference is None:
            self.reference = tops
            return 1.0
        agreed, self.reference = float(np.mean(tops == self.reference)), None
        return agreed


def scores(data: Dataset, labels: str | None, metric: str | MetricFunction | None) -> Scores:
    """The metric asked for. Raises CalibrationError when the labels are not in the data, or no metric is callable."""
    if labels is not None:
        if labels not in data.extras:
            raise CalibrationError(
                f"{data.name} has no array {labels!r} for labels: it has {', '.join(data.extras) or 'none'}"
            )
        return Scores(labels=np.asarray(data.extras[labels]), label_name=labels)
    if metric is not None:
        function = load_object(metric) if isinstance(metric, str) else metric
        if not callable(function):
            raise CalibrationError(f"metric {metric!r} is a {type(function).__name__}; give a function")
        return Scores(
            function=function, name=metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
        )
    return Scores()
