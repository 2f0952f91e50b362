"""Top-1 of a pruned CIFAR ResNet before and after its readers are fitted in closed form, without training.

    OMP_NUM_THREADS=1 python tests/measure/compensate.py --weights FILE --train FILE --test FILE [--methods l2,reprune]

The layers that no addition ties lose `--sparsity` of their filters; 128 training images, 1,000 test images.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch


def accuracy(model: Any, batches: list[Any]) -> float:
    from crepe.vision.load import logits_of

    with torch.no_grad():
        right = sum(int((logits_of(model(pixels)).argmax(1) == labels).sum()) for pixels, labels in batches)
    return right / sum(len(labels) for _, labels in batches)


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("--weights", "--train", "--test"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--model", default="resnet20-cifar10")
    parser.add_argument("--methods", default="l2,reprune")
    parser.add_argument("--sparsity", type=float, default=0.3)
    given = parser.parse_args()

    from crepe.masks.select import kept_count
    from crepe.vision.cut import channel_masks, hold
    from crepe.vision.graph import Graph
    from crepe.vision.images import batches, chosen, read_images
    from crepe.vision.layers import layer_of
    from crepe.vision.load import load_image_model
    from crepe.vision.methods import METHODS
    from crepe.vision.moments import input_moments
    from crepe.vision.preprocess import example_input
    from crepe.vision.readers import fit_to_kept
    from crepe.vision.removal import removal_of

    model, preprocess = load_image_model(given.model, weights=given.weights)
    test = list(batches(chosen(read_images(given.test), 1000, 0), preprocess, 100))
    calibration = [pixels for pixels, _ in batches(chosen(read_images(given.train), 128, 0), preprocess, 64)]
    graph = Graph(copy.deepcopy(model.eval()), example_input(preprocess))
    groups = [group for group in graph.groups if group.obstacle is None and not group.tied]
    readers = [group.users[0].name for group in groups]
    moments = input_moments(model, readers, calibration, torch.device("cpu"))
    print(f"dense: {accuracy(model, test):.3f}")
    for method in given.methods.split(","):
        (part, *_) = METHODS.get(method).parts
        kept = {g.name: part.select(layer_of(model, g), kept_count(g.units, given.sparsity)) for g in groups}
        pruned = copy.deepcopy(model)
        hold(pruned, channel_masks(model, groups, kept))
        plain = accuracy(pruned, test)
        removal = removal_of(graph, groups, kept, {})
        fit_to_kept(pruned, removal.kept, moments, removal.norms)
        print(f"{method}: {plain:.3f}, compensated {accuracy(pruned, test):.3f}")


if __name__ == "__main__":
    main()
