"""The scores that others use, against naive loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crepe.vision.methods import METHODS, FilterPart, Layer
from crepe.vision.methods.base import largest
from crepe.vision.methods.bn_scale import scale_score
from crepe.vision.methods.fpgm import median_score
from crepe.vision.methods.magnitude import norm_score

WEIGHTS = tuple(
    torch.randn(6, width, k, k, generator=torch.Generator().manual_seed(k)) for width, k in ((4, 3), (5, 1))
)
LAYER = Layer("a", WEIGHTS, scales=(torch.tensor([1.0, -3, 2, 0, 5, 4]).abs(),))


@pytest.mark.parametrize("power", [1, 2])
def test_norms_are_summed_over_tied_layers(power: int) -> None:
    naive = [
        sum(sum(abs(x) ** power for x in w[i].flatten().tolist()) ** (1 / power) for w in WEIGHTS) for i in range(6)
    ]
    assert norm_score(LAYER, power).tolist() == pytest.approx(naive, rel=1e-5)


def test_distance_to_all_other_filters() -> None:
    rows = LAYER.matrix
    assert rows.shape == (6, 4 * 9 + 5)
    naive = [sum(float((rows[i] - rows[j]).square().sum().sqrt()) for j in range(6)) for i in range(6)]
    assert median_score(rows).tolist() == pytest.approx(naive, rel=1e-5)


def test_scales_of_batch_norms_decide() -> None:
    part = METHODS.get("bn-scale").parts[0]
    assert isinstance(part, FilterPart)
    assert part.select(LAYER, 3).tolist() == [1, 4, 5] and scale_score(LAYER)[3] == 0
    assert part.suits(LAYER) and not part.suits(Layer("b", WEIGHTS))


def test_taylor_reads_the_statistic() -> None:
    part = METHODS.get("taylor").parts[0]
    assert isinstance(part, FilterPart)
    assert part.needs == {"taylor"}
    assert part.select(Layer("a", WEIGHTS, statistics={"taylor": torch.arange(6.0)}), 2).tolist() == [4, 5]


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=12), st.data())
def test_the_largest_with_ties_to_the_lower_index(values: list[float], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(values)))
    best = sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:keep])
    assert largest(torch.tensor(values), keep).tolist() == best
