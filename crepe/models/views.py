"""Weight views: every prunable matrix of a model as (out, in), and the reason for every one that stays dense."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from crepe.models.blocks import Block

UNKNOWN_LAYOUT = "no declared matrix layout"


@dataclass(frozen=True)
class View:
    """One weight matrix inside a parameter.

    name: the parameter's path, with `[e]` behind it for expert e of a fused tensor; shape: (out, in).
    """

    name: str
    owner: nn.Module
    attribute: str
    shape: tuple[int, int]
    transposed: bool = False
    expert: int | None = None

    @property
    def kind(self) -> str:
        """`attention` for a matrix inside a module that is called so; everything else counts as `mlp` (see KINDS)."""
        return "attention" if "attn" in self.name or "attention" in self.name else "mlp"

    @property
    def parameter(self) -> Tensor:
        found: Tensor = getattr(self.owner, self.attribute)
        return found

    def matrix(self) -> Tensor:
        """The weights as (out, in), sharing memory with the parameter: writing to it writes back."""
        return self.part_of(self.parameter.detach())

    def part_of(self, tensor: Tensor) -> Tensor:
        """What belongs to this view of a tensor that is shaped as the parameter, as (out, in), sharing its memory."""
        part = tensor if self.expert is None else tensor[self.expert]
        return part.T if self.transposed else part


@dataclass(frozen=True)
class Skipped:
    """A tensor that stays dense, with the reason for the report."""

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Inventory:
    """What is pruned and what is not, for one block or for everything outside the blocks."""

    views: list[View]
    skipped: list[Skipped]


def inventory(
    block: Block,
    head: nn.Module | None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    tied: Mapping[str, str] | None = None,
    dense: Mapping[str, str] | None = None,
) -> Inventory:
    """Sort every parameter of two or more dimensions in `block` into pruned and dense.

    head: the output embedding, dense even where it lies inside the block (a model without blocks).
    tied: names of parameters that are another one under a second name -> that other one; pruned once only.
    dense: parameters that stay dense for another reason -> that reason.
    include, exclude: glob patterns of parameter names that overrule the default.
    """
    routers = _routers(block.module)
    views: list[View] = []
    skipped: list[Skipped] = []
    for path, module in block.module.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter.dim() < 2:
                continue
            name = ".".join(part for part in (block.name, path, attribute) if part)
            reason = "excluded by --exclude" if matches(name, exclude) else None
            if name in (tied or {}):
                reason = f"the same tensor as {(tied or {})[name]}"
            reason = reason or (dense or {}).get(name)
            asked = matches(name, include)
            if reason is None and not asked:
                reason = _dense_by_default(module, attribute, module is head, module in routers)
            found = [] if reason else _views(name, module, attribute, parameter, asked)
            views += found
            if not found:
                skipped.append(Skipped(name, tuple(parameter.shape), reason or _unreadable(module, parameter)))
    return Inventory(views, skipped)


def outside(model: nn.Module, blocks: Sequence[Block]) -> list[Skipped]:
    """Everything of two or more dimensions that lies outside the blocks and therefore stays dense."""
    prefixes = tuple(block.name + "." for block in blocks)
    return [
        Skipped(name, tuple(parameter.shape), "outside the repeated blocks")
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 2 and not name.startswith(prefixes)
    ]


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _dense_by_default(module: nn.Module, attribute: str, is_head: bool, is_router: bool) -> str | None:
    if is_head:
        return "output embedding"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if is_router:
        return "router"
    if attribute.endswith("bias"):
        return "bias"
    return None


def _views(name: str, module: nn.Module, attribute: str, parameter: Tensor, asked: bool) -> list[View]:
    """The matrices inside a parameter; empty where its layout is not known.

    asked: named by --include; then a bare matrix (a router's, say) is taken as (out, in), as F.linear takes it.
    """
    if parameter.dim() == 3 and hasattr(module, "is_transposed"):
        transposed = bool(module.is_transposed)
        shape = _shape(parameter[0], transposed)
        experts = range(parameter.shape[0])
        return [View(f"{name}[{e}]", module, attribute, shape, transposed, e) for e in experts]
    if parameter.dim() == 2 and _is_conv1d(module):
        return [View(name, module, attribute, _shape(parameter, True), transposed=True)]
    if parameter.dim() == 2 and (asked or isinstance(module, nn.Linear)):
        return [View(name, module, attribute, _shape(parameter, False))]
    return []


def _shape(matrix: Tensor, transposed: bool) -> tuple[int, int]:
    first, second = matrix.shape
    return (second, first) if transposed else (first, second)


def _is_conv1d(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _unreadable(module: nn.Module, parameter: Tensor) -> str:
    kind = type(module).__name__
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return f"convolution ({kind}) inside a language model"
    return f"parameter of {kind} with {parameter.dim()} dimensions and {UNKNOWN_LAYOUT}"


def _routers(module: nn.Module) -> set[nn.Module]:
    """Layers that choose experts: beside the experts, with one output per expert or a single gate."""
    found: set[nn.Module] = set()
    for parent in module.modules():
        for child in parent.children():
            experts = _expert_count(child)
            if experts:
                inside = set(child.modules())
                found |= {m for m in parent.modules() if m not in inside and _outputs(m) in (1, experts)}
    return found


def _expert_count(module: nn.Module) -> int:
    """How many experts `module` holds as fused 3-D tensors."""
    fused = [p.shape[0] for _, p in module.named_parameters(recurse=False) if p.dim() == 3]
    if fused and not isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return fused[0]
    return 0


def _outputs(module: nn.Module) -> int | None:
    weight = module._parameters.get("weight")
    return weight.shape[0] if weight is not None and weight.dim() == 2 else None
