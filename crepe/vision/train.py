"""Fine-tuning: a plain loop on accelerate. What is masked stays zero, the best epoch is kept, a killed run goes on."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crepe.errors import CrepeError
from crepe.progress import bar, bars_wanted
from crepe.recipe import Recipe
from crepe.vision.augment import crop_and_flip
from crepe.vision.cut import hold
from crepe.vision.distill import distilled, teacher_of
from crepe.vision.images import Images, Pixels, parts, readable
from crepe.vision.load import logits_of
from crepe.vision.preprocess import Preprocessor
from crepe.vision.state import Progress, read_progress, save_progress

# Of the training images, so many are held back to choose the best epoch.
_HELD_SHARE, _HELD_MOST = 0.1, 5000
_MOMENTUM, _DECAY = 0.9, 5e-4
# Share of all steps in which the learning rate rises.
_WARM_UP = 0.05


def finetune(
    model: nn.Module,
    images: Images,
    preprocess: Preprocessor,
    recipe: Recipe,
    masks: Mapping[str, Tensor],
    device: torch.device,
    work: Path | None,
    dense: nn.Module | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place for `recipe.finetune` epochs; it ends with the weights of the best of them.

    masks: parameter name -> True = kept; what is masked is set back to zero after every step. work: folder for the
    state of each epoch, None to keep none. dense: the network that `recipe.distill` learns from, where it is not 0;
        it stays as it is.

    Returns:
        Per epoch: epoch, loss on the training images, accuracy on images held back from them.

    Raises:
        CrepeError: too few images, or the loss is NaN.
    """
    from accelerate import Accelerator

    if recipe.distill and dense is None:
        raise CrepeError(
            f"distill = {recipe.distill}: there is no dense network to learn from; give it, or leave it out"
        )
    accelerator = Accelerator(cpu=device.type == "cpu", device_placement=False)
    train, held = (readable(part, preprocess, device) for part in split(images, recipe.seed))
    whole: Any = model  # whose type knows no memory formats
    model = whole.to(device, memory_format=torch.channels_last)
    teacher = _teacher(accelerator, dense, device) if recipe.distill and dense is not None else None
    optimizer = _optimizer(model, recipe)
    ready: Any
    ready, stepper = accelerator.prepare(model, optimizer)  # which scales losses where float16 needs it
    progress = read_progress(work, model, optimizer, accelerator.scaler) or Progress([], {})
    steps = len(parts(len(train), recipe.batch_size))
    with bar("fine-tuning", recipe.finetune * steps) as advance:
        for _ in range(len(progress.history) * steps):
            advance()
        for epoch in range(len(progress.history), recipe.finetune):
            loss = 0.0
            ready.train()
            torch.manual_seed(recipe.seed + epoch)
            shuffled = epoch_batches(train, recipe.batch_size, recipe.seed + epoch)
            for step, (values, labels) in enumerate(shuffled):
                rate = cosine(epoch * steps + step, recipe.finetune * steps, recipe.learning_rate)
                found = _loss(ready, teacher, values, labels.to(device), recipe)
                loss += _finite(found)
                _step(accelerator, stepper, rate, found)
                hold(model, masks)
                advance()
            progress = _after_epoch(progress, model, held, epoch, loss / steps)
            save_progress(work, model, optimizer, progress, accelerator.scaler)
            _say(progress.history[-1], recipe.finetune)
    accelerator.unwrap_model(ready, keep_fp32_wrapper=False)  # what runs the model after this computes as before
    model.load_state_dict(progress.best)
    model.to("cpu").eval()
    return progress.history


def split(images: Images, seed: int) -> tuple[Images, Images]:
    """(training images, images held back). Raises CrepeError where there are too few to do both."""
    held = min(int(len(images) * _HELD_SHARE), _HELD_MOST)
    if held < 1:
        raise CrepeError(
            f"{images.source} has {len(images)} images: fine-tuning needs at least {round(1 / _HELD_SHARE)}"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    return images.subset(sorted(order[held:])), images.subset(sorted(order[:held]))


def epoch_batches(images: Pixels, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in an order and with crops and flips that the seed decides: (pixel values, labels)."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    for part in parts(len(images), size):
        values, labels = images.batch(order[part.start : part.stop].tolist())
        yield crop_and_flip(values, generator), labels


def cosine(step: int, total: int, highest: float) -> float:
    """Learning rate: up along a line for the first steps, then down to 0 along a cosine."""
    warm = max(int(total * _WARM_UP), 1)
    if step < warm:
        return highest * (step + 1) / warm
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1)))


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels only: scales and shifts are not pulled to zero."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": _DECAY},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=_MOMENTUM, nesterov=True)


def _teacher(accelerator: Any, dense: nn.Module, device: torch.device) -> nn.Module:
    """A copy of the dense network, ready to run as the trained one does."""
    placed: Any = teacher_of(dense)
    found: nn.Module = accelerator.prepare_model(
        placed.to(device, memory_format=torch.channels_last), evaluation_mode=True
    )
    return found


def _loss(model: nn.Module, teacher: nn.Module | None, values: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Of one batch, a scalar."""
    logits = logits_of(model(values))
    loss = nn.functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    if teacher is not None:
        with torch.no_grad():
            wanted = logits_of(teacher(values))
        loss = distilled(loss, logits, wanted, recipe.distill)
    return loss


def _finite(loss: Tensor) -> float:
    """The loss as a number, read before the step so that nothing waits for that. Raises CrepeError for NaN."""
    found = float(loss.detach())
    if not math.isfinite(found):
        raise CrepeError(f"the loss of the fine-tuning is {found}: lower --learning-rate")
    return found


def _step(accelerator: Any, optimizer: Any, rate: float, loss: Tensor) -> None:
    """One step of the optimizer."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(loss)
    optimizer.step()


def _say(line: dict[str, float], epochs: int) -> None:
    """A line for each epoch where there is no bar, as in a log."""
    if not bars_wanted():
        found = f"loss {line['loss']:.4f}, accuracy {line['accuracy']:.2%} on held-back images"
        logging.getLogger("crepe").info("epoch %d of %d: %s", line["epoch"], epochs, found)


def _after_epoch(progress: Progress, model: nn.Module, held: Pixels, epoch: int, loss: float) -> Progress:
    """The history with this epoch, and its weights where it is the best so far (the earlier of two equal ones)."""
    model.eval()
    right = 0
    with torch.inference_mode():
        for values, labels in map(held.batch, parts(len(held), 256)):
            right += int((logits_of(model(values)).argmax(1).cpu() == labels).sum())
    found = right / len(held)
    best = progress.best
    if not progress.history or found > max(line["accuracy"] for line in progress.history):
        best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    return Progress([*progress.history, {"epoch": float(epoch + 1), "loss": loss, "accuracy": found}], best)
