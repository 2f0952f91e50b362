"""ToaSt's feed-forward selection at run time, put into a model as it is (see `crepe.vision.token_gate`).

For comparison with the static form: the layers keep their shapes, so nothing is saved and nothing gets smaller on disk.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from crepe.vision.class_token import ClassRows, prefix_tokens
from crepe.vision.graph import Graph
from crepe.vision.layers import kind_of
from crepe.vision.token_gate import TokenGate


def gate_hidden(
    model: nn.Module, example: Tensor, ratio: float, *, per_image: bool = False, seed: int = 0
) -> list[RemovableHandle]:
    """Zero `ratio` of the hidden channels where the second layer of each feed-forward part reads them, in all parts but
    the first. Removing the handles makes the model dense again.

    per_image False: one choice for each batch, as published, so THE RESULT FOR AN IMAGE DEPENDS ON ITS BATCH; True: one
    for each image.
    """
    groups = [g for g in Graph(model, example).groups if g.obstacle is None and g.users]
    readers = [g.users[0].name for g in groups if kind_of(model.get_submodule(g.name)) == "linear"]
    rows, prefix = ClassRows(model), prefix_tokens(model)
    handles = list(rows.handles)
    for index, name in enumerate(readers[1:]):
        gate = TokenGate(ratio, prefix, seed=seed + index, per_image=per_image)

        def select(module: nn.Module, inputs: tuple[Tensor, ...], gate: TokenGate = gate) -> tuple[Tensor, ...]:
            return (gate(inputs[0], rows.row_for(inputs[0]) if prefix else None), *inputs[1:])

        handles.append(model.get_submodule(name).register_forward_pre_hook(select))
    return handles
