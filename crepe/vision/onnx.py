"""ONNX export, and the proof that onnxruntime computes the same."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crepe.errors import CrepeError
from crepe.vision.cut import distance
from crepe.vision.load import logits_of
from crepe.vision.preprocess import Preprocessor, example_input

# onnxruntime fuses and reorders sums.
TOLERANCE = 1e-4


class _Logits(nn.Module):
    """The model as a function from pixel values to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return logits_of(self.model(pixel_values))


def export(model: nn.Module, preprocess: Preprocessor, path: Path) -> str:
    """Write `model` with a free batch size; returns the note for the report.

    Raises:
        CrepeError: onnx is not installed, the export fails, or onnxruntime computes something else.
    """
    example = example_input(preprocess, count=2, seed=1)
    write(model, example, path)
    return _checked(_Logits(model).eval(), example, path)


def write(model: nn.Module, example: Tensor, path: Path) -> None:
    """Export without a check. Raises CrepeError as `export` does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _quietly_exported(_Logits(model).eval(), example, path)
    except ImportError as error:
        raise CrepeError(
            f"--onnx needs onnx and onnxscript ({error}): pip install onnx onnxscript onnxruntime"
        ) from error
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CrepeError(f"the model cannot be exported to ONNX: {reason[0]}; leave --onnx out") from error


def _quietly_exported(model: nn.Module, example: Tensor, path: Path) -> None:
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        torch.onnx.export(
            model,
            (example,),
            str(path),
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1)}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _checked(model: nn.Module, example: Tensor, path: Path) -> str:
    try:
        running = session(path)
    except ImportError:
        return "model.onnx was written and not checked: onnxruntime is not installed"
    with torch.no_grad():
        expected = model(example)
    found = torch.from_numpy(running.run(None, {"pixel_values": example.numpy()})[0])
    error = distance(expected, found)
    if error > TOLERANCE:
        path.unlink()
        raise CrepeError(
            f"onnxruntime computes something else than the model (difference {error:.2g}): leave --onnx out"
        )
    return f"model.onnx agrees with the model in onnxruntime to {error:.1g}"
