"""How results look to people."""

from __future__ import annotations

import pytest

from crepe.cli.output import megabytes


@pytest.mark.parametrize(
    ("size", "text"),
    [(12, "12 B"), (999.6e6, "1 GB"), (999.4e6, "999 MB"), (1.234e9, "1.23 GB"), (999_600, "1 MB"), (1500, "1.5 kB")],
)
def test_sizes_have_three_digits_and_no_exponent(size: float, text: str) -> None:
    assert megabytes(size) == text
