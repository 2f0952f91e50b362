"""Fine-tuning learns, holds masks, keeps the best epoch, and goes on after a kill with the same result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from crepe.errors import CrepeError
from crepe.recipe import Recipe
from crepe.vision import train
from crepe.vision.augment import crop_and_flip
from crepe.vision.images import Images, read_images, readable
from crepe.vision.nets.cifar_resnet import CifarResNet
from image_data import STEPS, parquet

CPU = torch.device("cpu")


def _recipe(**fields: Any) -> Recipe:
    return Recipe(**{"model": "a", "batch_size": 8, "finetune": 2, "learning_rate": 0.02, **fields})


def _net() -> CifarResNet:
    torch.manual_seed(0)
    return CifarResNet(8, 5, 4)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return read_images(parquet(tmp_path_factory.mktemp("images") / "a.parquet", 60))


def test_learns_and_holds_masks(images: Images, caplog: pytest.LogCaptureFixture) -> None:
    model = _net()
    masks = {"layer1.0.conv1.weight": torch.zeros(4, 4, 3, 3, dtype=torch.bool)}
    with caplog.at_level("INFO", "crepe"):
        history = train.finetune(model, images, STEPS, _recipe(finetune=3), masks, CPU, None)
    assert [line["epoch"] for line in history] == [1, 2, 3]
    assert history[-1]["loss"] < history[0]["loss"]
    assert not model.layer1[0].conv1.weight.any() and model.layer1[0].conv2.weight.all()
    said = [record.getMessage() for record in caplog.records if record.name == "crepe"]
    assert len(said) == 3 and said[2].startswith(f"epoch 3 of 3: loss {history[-1]['loss']:.4f}, accuracy")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_killed_run_goes_on_to_the_same_weights(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    whole, killed, recipe = _net(), _net(), _recipe(optimizer=optimizer)
    expected = train.finetune(whole, images, STEPS, recipe, {}, CPU, None)
    original, epochs = train._after_epoch, []

    def after(*arguments: Any) -> Any:
        epochs.append(1)
        if len(epochs) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_after_epoch", after)
        with pytest.raises(KeyboardInterrupt):
            train.finetune(killed, images, STEPS, recipe, {}, CPU, tmp_path)
    resumed = _net()
    assert train.finetune(resumed, images, STEPS, recipe, {}, CPU, tmp_path) == expected
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_a_scaled_loss_trains_as_a_plain_one(images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What float16 needs on a GPU, with a scale that loses no bit; a second run begins with the scale of the first."""
    import accelerate

    class Scaling(accelerate.Accelerator):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
            scalers.append(self.scaler)

    scalers: list[torch.amp.GradScaler] = []
    plain, scaled = _net(), _net()
    train.finetune(plain, images, STEPS, _recipe(), {}, CPU, None)
    monkeypatch.setattr(accelerate, "Accelerator", Scaling)
    train.finetune(scaled, images, STEPS, _recipe(), {}, CPU, tmp_path)
    train.finetune(_net(), images, STEPS, _recipe(), {}, CPU, tmp_path)
    assert scalers[0].state_dict() == scalers[1].state_dict() and scalers[0].get_scale() > 1024
    for one, other in zip(plain.state_dict().values(), scaled.state_dict().values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("before", "is_better"), [(1.1, False), (-0.1, True)])
def test_the_best_epoch_is_kept(images: Images, before: float, is_better: bool) -> None:
    model, old = _net(), {"linear.bias": torch.ones(5)}
    progress = train.Progress([{"epoch": 1, "loss": 1.0, "accuracy": before}], old)
    found = train._after_epoch(progress, model, readable(images, STEPS, CPU), 1, 0.5)
    assert 0 <= found.history[-1]["accuracy"] <= 1 and found.history[-1]["epoch"] == 2
    assert (found.best is old) != is_better
    if is_better:
        assert torch.equal(found.best["linear.weight"], model.linear.weight)
        again = train._after_epoch(found, model, readable(images, STEPS, CPU), 2, 0.5)
        assert again.best is found.best  # of two equal epochs the earlier one


def test_held_back_images_are_never_trained_on(images: Images) -> None:
    trained, held = train.split(images, 0)
    assert len(held) == 6 and len(trained) == 54
    names = {trained.names(i) for i in range(54)} | {held.names(i) for i in range(6)}
    assert len(names) == 60 and train.split(images, 1)[1].labels != held.labels
    with pytest.raises(CrepeError, match="has 5 images: fine-tuning needs at least 10"):
        train.split(images.subset(range(5)), 0)


def test_an_epoch_shows_every_image_once_and_depends_on_the_seed(images: Images) -> None:
    first, again, other = (list(train.epoch_batches(readable(images, STEPS, CPU), 16, seed)) for seed in (0, 0, 1))
    assert sorted(torch.cat([labels for _, labels in first]).tolist()) == sorted(images.labels)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])


def test_crops_are_shifts_with_zeros_moving_in_and_some_are_flipped() -> None:
    pixels = torch.arange(1.0, 65).view(1, 1, 8, 8).repeat(50, 1, 1, 1)
    found = crop_and_flip(pixels, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(pixels[0, 0], (1, 1, 1, 1))
    allowed = [padded[i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    allowed += [crop.flip(1) for crop in allowed]
    hits = [[torch.equal(image[0], crop) for crop in allowed].index(True) for image in found]
    assert len(set(hits)) > 9 and found.shape == pixels.shape


def test_the_learning_rate_rises_and_then_falls_to_zero() -> None:
    rates = [train.cosine(step, 100, 0.1) for step in range(100)]
    assert rates[4] == pytest.approx(0.1) and max(rates) <= 0.1 and rates[0] == pytest.approx(0.02)
    assert rates[5:] == sorted(rates[5:], reverse=True) and rates[-1] < 1e-4


def test_a_loss_that_is_not_finite_is_one_line(images: Images) -> None:
    model = _net()
    torch.nn.init.constant_(model.linear.bias, float("nan"))
    with pytest.raises(CrepeError, match="lower --learning-rate"):
        train.finetune(model, images, STEPS, _recipe(), {}, CPU, None)
