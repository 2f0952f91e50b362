"""Tests that run kernels in Triton's interpreter. Triton reads the variable where a kernel is defined, so that they
need a process of their own: `test_interpreted.py` one folder up starts it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*"]


@pytest.fixture(autouse=True)
def plans_of_this_test() -> Iterator[None]:
    """Tests put rows of their own into the tables."""
    from crepe.kernels.triton import configs

    configs.forget()
    yield
    configs.forget()
