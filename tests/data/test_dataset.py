"""Parts of the data."""

import pytest

from edgeq.data import Dataset, position


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 5, 8, 40, 101])
def test_parts_hold_each_sample_once_and_its_position_is_known(count, parts):
    data = Dataset("data", lambda: iter(range(count)), count)
    held = {part: list(data.part(part, parts)) for part in range(parts)}
    assert sorted(sample for samples in held.values() for sample in samples) == list(range(count))
    for part, samples in held.items():
        assert samples == [position(index, part, parts) for index in range(len(samples))]
