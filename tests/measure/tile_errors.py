"""What a layer loses by the shape of its blocks: the error of point-wise layers of EfficientNet-Lite0 when half of
their weights go and the others are fitted again, by backward elimination.

    python tests/measure/tile_errors.py --data imagenet-sample-500.parquet

For each layer, the squared error of the output behind the batch norm as a share of its variance, over the images that
the costs were worked out on, for tiles of 1, 8 and 32 rows and blocks of 1 and 8 columns (64 rows of the layer), and
for the same columns in all rows, which is what cutting filters of the layer before takes away.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

LAYERS = ("_blocks.6._expand_conv", "_blocks.6._project_conv", "_blocks.12._expand_conv")
ROWS, IMAGES = 64, 64


def main() -> None:
    from crepe.vision.evidence import Evidence
    from crepe.vision.graph import Graph
    from crepe.vision.images import read_images
    from crepe.vision.load import load_image_model
    from crepe.vision.preprocess import example_input

    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    given = parser.parse_args()
    model, preprocess = load_image_model("efficientnet-lite0")
    images = read_images(given.data)
    pixels = [preprocess([images.picture(i) for i in range(start, start + 16)]) for start in range(0, IMAGES, 16)]
    evidence = Evidence(Graph(model, example_input(preprocess)), pixels, torch.device("cpu"))
    moments = evidence.moments(LAYERS)
    print("| layer | 1 x 1 | 8 x 1 | 32 x 1 | 32 x 8 | all rows x 1 |\n|---|---|---|---|---|---|")
    for name in LAYERS:
        weight = model.get_submodule(name).weight.detach().float().flatten(1)
        gain = evidence.gain(name)
        matrix = weight if gain is None else weight * gain[:, None]
        errors = [
            _error(matrix[:ROWS], moments[name].covariance, *shape) for shape in ((1, 1), (8, 1), (32, 1), (32, 8))
        ]
        errors.append(_error(matrix, moments[name].covariance, len(matrix), 1))
        print(f"| {name} | " + " | ".join(f"{error:.3f}" for error in errors) + " |", flush=True)


def _error(matrix: Tensor, covariance: Tensor, rows: int, columns: int) -> float:
    """Half of the blocks of every tile gone."""
    from crepe.vision.elimination import block_costs

    lost = 0.0
    for tile in torch.split(matrix, rows):
        costs = block_costs(tile, covariance, columns).sort().values
        lost += float(costs[: len(costs) // 2].sum())
    return lost / float(((matrix @ covariance) * matrix).sum())


if __name__ == "__main__":
    main()
