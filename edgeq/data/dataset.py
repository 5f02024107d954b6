"""A `Dataset`: samples that can be walked through more than once, are the same each time, and can be shared out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from edgeq.data.padding import Padding, unpadded

Feeds = dict[str, np.ndarray]

BLOCK = 8
"""Consecutive samples that stay together when a data set is shared out, so that they may be run as one batch."""


@dataclass(frozen=True)
class Dataset:
    """name: for messages. make: a fresh iterator over samples. count: how many, None when only walking can tell.

    extras: arrays beside the inputs, such as labels, with samples on axis 0. get: the sample of an index, where that
    needs no walk over those before it. source: what `open_data` makes the same data from in another process.
    padding: what `unpadded` trims.
    """

    name: str
    make: Callable[[], Iterator[Feeds]]
    count: int | None = None
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    get: Callable[[int], Feeds] | None = None
    source: str | None = None
    padding: tuple[Padding, ...] = ()

    @staticmethod
    def indexed(
        name: str,
        get: Callable[[int], Feeds],
        count: int,
        extras: dict[str, np.ndarray] | None = None,
        source: str | None = None,
    ) -> Dataset:
        return Dataset(name, lambda: map(get, range(count)), count, extras or {}, get, source)

    def __iter__(self) -> Iterator[Feeds]:
        return self.make()

    def take(self, limit: int) -> Dataset:
        """The first `limit` samples; all of them for 0."""
        if not limit or (self.count is not None and self.count <= limit):
            return self
        if self.count is not None:
            return self._only(range(limit))
        return replace(self, make=lambda: islice(self.make(), limit), source=None)

    def sample(self, limit: int, seed: int) -> Dataset:
        """`limit` samples drawn without replacement, in their order; the first ones of a stream; all of them for 0.

        Data often lies sorted, by class for one, so that its first samples would be much alike.
        """
        if not limit or self.count is None or self.count <= limit or self.get is None:
            return self.take(limit)
        drawn = np.random.default_rng(seed % 2**64).choice(self.count, limit, replace=False)
        return self._only(sorted(int(i) for i in drawn))

    def part(self, index: int, parts: int) -> Dataset:
        """Every `parts`-th block of `BLOCK` samples from block `index` on: all parts together hold each sample once."""
        if parts == 1:
            return self
        if self.count is not None:
            return self._only([i for i in range(self.count) if i // BLOCK % parts == index])

        def mine() -> Iterator[Feeds]:
            return (feeds for i, feeds in enumerate(self.make()) if i // BLOCK % parts == index)

        return replace(self, make=mine, extras={}, source=None)

    def unpadded(self) -> Dataset:
        """The samples without padding, a batch perhaps as several (see `edgeq.data.padding`), and without extras.

        Where samples have an index, each is looked at once here, to count them.
        """
        if not self.padding:
            return self
        padding, get = self.padding, self.get
        made = Dataset(self.name, lambda: (part for feeds in self for part in unpadded(feeds, padding)))
        if get is None:
            return made
        places = [(i, j) for i in range(self.count or 0) for j in range(len(unpadded(get(i), padding)))]

        def part(index: int) -> Feeds:
            sample, place = places[index]
            return unpadded(get(sample), padding)[place]

        return replace(made, count=len(places), get=part)

    def _only(self, indices: Sequence[int]) -> Dataset:
        extras = {k: v[list(indices)] for k, v in self.extras.items()}
        if self.get is not None:
            get = self.get
            drawn = Dataset.indexed(self.name, lambda i: get(indices[i]), len(indices), extras)
            return replace(drawn, padding=self.padding)
        wanted = set(indices)

        def some() -> Iterator[Feeds]:
            return (feeds for i, feeds in enumerate(islice(self.make(), max(wanted, default=-1) + 1)) if i in wanted)

        return replace(self, make=some, count=len(indices), extras=extras, source=None)


def position(index: int, part: int, parts: int) -> int:
    """Of the sample at `index` of `Dataset.part(part, parts)`, in all of the data."""
    block, within = divmod(index, BLOCK)
    return (block * parts + part) * BLOCK + within
