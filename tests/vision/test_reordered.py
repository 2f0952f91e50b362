"""Tiles of rows that need the same columns: as much work as before, and more of the weights."""

from __future__ import annotations

import torch

import crepe
from crepe.masks import ColBlock
from crepe.vision.balance import worst_imbalance
from crepe.vision.column_blocks import balanced
from crepe.vision.reordered import reordered
from image_families import Flattened, plain

PATTERN = ColBlock(8, 2)


def test_the_mask_is_balanced_in_its_order_and_keeps_more() -> None:
    matrix = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    matrix[::2, :8] *= 10  # neighbours want different columns
    matrix[1::2, 8:] *= 10
    plain_mask = balanced(matrix, PATTERN, 4)
    masks, orders = reordered({"a": matrix}, {"a": plain_mask}, PATTERN)
    assert sorted(orders["a"].tolist()) == list(range(32))
    assert PATTERN.violations(masks["a"][orders["a"]]) == 0 and masks["a"].sum() == plain_mask.sum()
    assert (matrix * masks["a"]).norm() > 1.1 * (matrix * plain_mask).norm()


def test_the_flag_gives_masks_in_the_order_of_the_model() -> None:
    example = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    models = [plain(Flattened), plain(Flattened)]
    for model in models:
        model.hidden = torch.nn.Linear(96, 64)
        model.head = torch.nn.Linear(64, 5)
    models[1].load_state_dict(models[0].state_dict())
    fields = {"example": example, "method": "bcbp", "sparsity": 0.5}
    results = [
        crepe.prune(model, reorder_rows=flag, **fields) for model, flag in zip(models, (False, True), strict=True)
    ]
    assert results[0].row_orders == {} and sorted(results[1].row_orders["hidden"]) == list(range(64))
    zeros = models[1].hidden.weight[results[1].row_orders["hidden"]] == 0
    assert ColBlock(32, 8).violations(~zeros) == 0
    kept = [float(model.hidden.weight.detach().norm()) for model in models]
    assert kept[1] >= kept[0] and results[0].sparsity == results[1].sparsity
    assert all(result.notes[-1].startswith("work of the fullest tile of rows: 0.00% above") for result in results)


def test_unequal_tiles_show_in_the_worst_imbalance() -> None:
    mask = torch.ones(16, 8, dtype=torch.bool)
    mask[:8, 2:] = False  # one block of four, and four of four
    masks, names = {"a.weight": mask, "b.weight": mask[8:]}, {"a.weight": "colblock:8x2", "b.weight": "colblock:8x2"}
    assert worst_imbalance(masks, names, {}) == 4 / 2.5 - 1
    order = torch.arange(16).view(2, 8).T.flatten()  # rows of both kinds in each tile
    assert worst_imbalance(masks, names, {"a": order}) == 0.0
    assert worst_imbalance({"t": mask}, {"t": "tap:32"}, {}) is None
