"""Which channels hang together: Torch-Pruning traces the network, this file puts its findings into `Group`s."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crepe.errors import CrepeError
from crepe.vision.group import Group, Member
from crepe.vision.load import outputs_of

# Operations over which a channel is not a channel any more.
_ATTENTION = ("Bmm", "ScaledDotProduct", "BaddbmmBackward", "SafeSoftmax", "SoftmaxBackward")


class Graph:
    """The dependency graph of one model; `cut` changes the model in place."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        """example: pixel values (count, 3, height, width).

        Raises:
            CrepeError: the network cannot be traced.
        """
        import torch_pruning

        self.model = model
        self._outside = torch_pruning.ops
        self._graph = torch_pruning.DependencyGraph()
        trained = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.requires_grad_(True)
                self._graph.build_dependency(model, example, output_transform=outputs_of, verbose=False)
                found = list(self._graph.get_all_groups())
        except CrepeError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CrepeError(
                f"the graph of {type(model).__name__} cannot be traced for inputs of shape {tuple(example.shape)}: "
                f"{reason[0]}; check that the model runs on images of this size"
            ) from error
        finally:
            for parameter in trained:
                parameter.requires_grad_(False)
        self._order = {name: i for i, (name, _) in enumerate(model.named_modules())}
        groups = [self._group(group) for group in found]
        self.groups: list[Group] = sorted(groups, key=lambda group: self._order[group.name])

    def cut(self, removed: dict[str, Tensor]) -> None:
        """Remove channels for good. removed: group name -> channels of that group."""
        function = self._graph.get_pruner_of_module
        for name, channels in removed.items():
            if len(channels):
                layer = self.model.get_submodule(name)
                root = self._graph.get_pruning_group(layer, function(layer).prune_out_channels, channels.tolist())
                root.prune(record_history=False)

    def runs(self, name: str) -> bool:
        """Whether the layer `name` was called and the outputs depend on it. Heads that only training uses are not, nor
        is the output projection of torch's attention, whose weights are read past its forward."""
        return self.model.get_submodule(name) in self._graph.module2node

    def norm_behind(self, name: str) -> str | None:
        """The batch norm that alone reads what the layer `name` makes."""
        readers = self._graph.module2node[self.model.get_submodule(name)].outputs
        module = readers[0].module if len(readers) == 1 else None
        return self._name(module) if isinstance(module, nn.BatchNorm2d) and module.track_running_stats else None

    def _group(self, found: Any) -> Group:
        """Torch-Pruning's list of (operation, indices) as makers, followers, norms and users."""
        items = self._rooted(found)
        width = len(items[0].idxs)
        members: dict[str, list[Member]] = {"makers": [], "followers": [], "norms": [], "users": []}
        obstacles, kinds = [], []
        for item in items:
            module, node = item.dep.target.module, item.dep.target
            kinds.append(type(node.grad_fn).__name__ if node.grad_fn is not None else "")
            role = self._role(item)
            obstacles.append(_obstacle(role, module, self._name(module)))
            if role in members:
                indices = _by_channel(item, width)
                if indices is None:
                    obstacles.append(f"its channels are mixed before {self._name(module)!r}")
                else:
                    members[role].append(Member(self._name(module), indices))
        if any(part in kind for kind in kinds for part in _ATTENTION):
            obstacles.append("it belongs to an attention, whose heads have to be cut together")
        root = self._name(items[0].dep.target.module)
        if root not in [member.name for member in members["makers"]]:
            obstacles.append("no convolution and no Linear layer makes its channels")
        folds, obstacle = self._folds(members, width)
        if not members["users"]:
            obstacles.append("nothing reads its channels: it makes the output of the model")
        reasons = [reason for reason in [*obstacles, obstacle] if reason]
        parts: dict[str, tuple[Member, ...]] = {role: tuple(values) for role, values in members.items()}
        tied = len(parts["makers"]) > 1 and any(kind.startswith("AddBackward") for kind in kinds)
        return Group(
            root,
            width,
            **parts,
            folds=folds,
            tied=tied,
            obstacle=reasons[0] if reasons else None,
        )

    def _rooted(self, found: Any) -> Sequence[Any]:
        """The group as seen from the first layer that makes the channels, not from a later one in their midst."""
        width = len(found[0].idxs)
        makers = [i.dep.target.module for i in found if self._role(i) == "makers" and len(i.idxs) == width]
        first = min(makers, key=lambda module: self._order[self._name(module)], default=None)
        if first is None or first is found[0].dep.target.module:
            return list(found)
        pruner = self._graph.get_pruner_of_module(first)
        if pruner.get_out_channels(first) != width:
            return list(found)
        return list(self._graph.get_pruning_group(first, pruner.prune_out_channels, list(range(width))))

    def _role(self, item: Any) -> str:
        module, handler = item.dep.target.module, item.dep.handler
        makes = self._graph.is_out_channel_pruning_fn(handler)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            return "followers" if _is_depthwise(module) else "makers" if makes else "users"
        if isinstance(module, nn.BatchNorm2d):
            return "norms"
        if isinstance(module, self._outside._OutputOp):
            return "output"
        if isinstance(module, nn.Parameter):
            return "parameter"
        if type(module).__module__.startswith("torch_pruning") or not list(module.parameters(recurse=False)):
            return "passes"
        return "other"

    def _folds(self, members: dict[str, list[Member]], width: int) -> tuple[int, str | None]:
        layers = [self.model.get_submodule(m.name) for m in [*members["makers"], *members["users"]]]
        counts = {layer.groups for layer in layers if isinstance(layer, nn.Conv2d) and layer.groups > 1}
        if not counts:
            return 1, None
        if len(counts) > 1 or width % max(counts) or width // max(counts) == 1:
            return 1, f"grouped convolutions ({', '.join(map(str, sorted(counts)))} groups) leave nothing to cut"
        return counts.pop(), None

    def _name(self, module: Any) -> str:
        if isinstance(module, nn.Parameter):
            return str(self._graph._param_to_name.get(module, "a parameter"))
        return str(self._graph._module2name.get(module) or type(module).__name__)


def _is_depthwise(module: Any) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.out_channels and module.out_channels > 1


def _obstacle(role: str, module: Any, name: str) -> str | None:
    if role == "output":
        return "it makes the output of the model"
    if role == "parameter":
        return f"its channels are tied to the parameter {name!r}"
    if role == "other":
        return f"{type(module).__name__} {name!r} works on all its channels together"
    if role == "norms" and not module.affine:
        return f"batch norm {name!r} has no scale that could silence a channel"
    return None


def _by_channel(item: Any, width: int) -> Tensor | None:
    """(width, n): the positions of each channel of the root; None where they are not n for each channel."""
    roots = list(item.root_idxs)
    if len(roots) != len(item.idxs) or len(roots) % width or any(root is None for root in roots):
        return None
    positions: list[list[int]] = [[] for _ in range(width)]
    for position, root in zip(item.idxs, roots, strict=True):
        positions[root].append(position)
    lengths = {len(found) for found in positions}
    return torch.tensor(positions) if len(lengths) == 1 else None
