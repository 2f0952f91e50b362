"""A quick look at a refinement: prune the first blocks of a model only, and see what that does to perplexity.

    python tests/measure/first_blocks.py --calibration FILE --other FILE [--blocks 6] [--rows 64]
        [--damping D] [--rate R] KEY=VALUE ...

KEY=VALUE are fields of a recipe, such as pattern=2:4 refine=sparsegpt,refit refit_steps=64. Perplexity is on 12 windows
of 512 tokens of the other text, which must not be one that results are reported on. --damping and --rate replace the
solvers' damping and the refit's rate. What is tuned here is a default; what it is worth is measured by stack.py.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import crepe
from crepe.calibration.text import read_corpus
from crepe.calibration.tokens import packed_rows, windows
from crepe.eval.perplexity import measure
from crepe.models.blocks import find_blocks
from crepe.pipeline.run import Runner


def only_first(blocks: int) -> None:
    """The walk leaves the blocks behind the first ones alone."""
    visit = Runner._visit

    def first(self: Runner, index: int, *rest: Any) -> None:
        if index < blocks:
            visit(self, index, *rest)

    Runner._visit = first  # type: ignore[method-assign]


def with_constants(damping: float | None, rate: float | None) -> None:
    from crepe.refine import gram, refit

    if damping is not None:
        for function in (gram.damped, gram.factor):
            function.__defaults__ = (damping,)
    if rate is not None:
        refit.RATE = rate


def _field(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    return key, json.loads(value) if value.replace(".", "").isdigit() else value


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="llama")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--other", required=True)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--damping", type=float)
    parser.add_argument("--rate", type=float)
    parser.add_argument("fields", nargs="*")
    given = parser.parse_args()
    only_first(given.blocks)
    with_constants(given.damping, given.rate)
    model, tokenizer = crepe.load(given.model, dtype="bfloat16")
    rows = packed_rows(tokenizer, read_corpus(given.calibration), given.rows, 512, 0)
    other = windows(tokenizer, read_corpus(given.other), 512, 12)
    left = [f"{block.name}.*" for block in find_blocks(model)[given.blocks :]]
    result = crepe.prune(model, rows=rows, exclude=left, **dict(map(_field, given.fields)))
    fits = {name: [round(value, 4) for value in found] for fit in result.fits.values() for name, found in fit.items()}
    print(f"{measure(model, None, other)['token_perplexity']:.2f}", f"{result.seconds:.0f} s", "last fit:", fits)


if __name__ == "__main__":
    main()
