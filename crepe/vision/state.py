"""The state of a fine-tuning after each epoch: one safetensors file, replaced whole, nothing pickled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crepe.checkpoint.files import save_tensors

_FILE = "training.safetensors"
_COLUMNS = ("epoch", "loss", "accuracy")


@dataclass(frozen=True)
class Progress:
    """history: one line per finished epoch; best: the weights of the best of them."""

    history: list[dict[str, float]]
    best: dict[str, Tensor]


def save_progress(
    work: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, scaler: Any = None
) -> None:
    """scaler: torch's GradScaler where losses are scaled, as for float16."""
    if work is None:
        return
    lines = [[line[key] for key in _COLUMNS] for line in progress.history]
    tensors = {"history": torch.tensor(lines, dtype=torch.float64)}
    tensors |= {f"model.{name}": tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in progress.best.items()}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if value is not None:
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value).detach().cpu()
    if scaler is not None:
        tensors |= {f"scaler.{name}": torch.tensor(value) for name, value in scaler.state_dict().items()}
    save_tensors(work / _FILE, tensors)


def read_progress(
    work: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any = None
) -> Progress | None:
    """Put model, optimizer and scaler back to where the last finished epoch left them; None where there is none."""
    from safetensors.torch import load_file

    if work is None or not (work / _FILE).is_file():
        return None
    tensors = load_file(work / _FILE)
    model.load_state_dict(_below("model.", tensors))
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in _below("optimizer.", tensors).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    if scaler is not None:
        scaler.load_state_dict({name: tensor.item() for name, tensor in _below("scaler.", tensors).items()})
    history = [dict(zip(_COLUMNS, line, strict=True)) for line in tensors["history"].tolist()]
    return Progress(history, _below("best.", tensors))


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
