"""crepe prune"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_TEXT = [
    ("--model", "M", "Hub id, folder, .gguf file or alias (llama, qwen3-0.6b, ...)"),
    ("--weights", "FILE", "safetensors file with other weights for the architecture of --model"),
    ("--revision", "REV", "branch, tag or commit of a Hub model"),
    ("--output", "DIR", "folder to write; must not exist"),
    ("--recipe", "NAME|FILE", "a shipped recipe (fast, balanced, best) or a YAML file; flags overrule it"),
    (
        "--method",
        "NAME",
        "importance score: crepe (default), ria, wanda, magnitude; image models: l2 (default), l1, fpgm, bn-scale, "
        "taylor, reprune, reprune-normalised, deprune, deprune-b, deprune-bh, deprune-obs, bcbp, bcbp-obs, "
        "bcbp-vector, bcbp-vector-obs, toast, toast-l1, toast-l2, toast-rotated",
    ),
    ("--pattern", "P", "unstructured (default), N:M such as 2:4, colblock:RxC, channel, head, block, or dense+2:4"),
    ("--compare", "GROUP", "unstructured: compare weights over the tensor, each output row, or the global model"),
    ("--coefficients", "FILE", "YAML file with the coefficients of the crepe score"),
    (
        "--allocation",
        "NAME",
        "how the sparsity is divided over tensors: uniform (default), owl, alpha, error; image models: uniform, "
        "bn-quantile, measured",
    ),
    ("--bounds", "GLOB=LOW:HIGH,...", "lowest and highest sparsity of the tensors of these names, for --allocation"),
    (
        "--refine",
        "A,B",
        "refinements, in order: permute, fold, dsnot, swaps, sparsegpt, optimal, cg, admm, refit; image models: "
        "compensate, bn, sequential",
    ),
    ("--include", "GLOBS", "parameters to prune although they stay dense by default, such as '*.router.*'"),
    ("--exclude", "GLOBS", "parameters to leave dense, such as '*.down_proj.*'"),
    (
        "--calibration",
        "SRC",
        "self (default: the model writes it), wikitext2, c4, a Hub data set or a text file; image models: a folder, a "
        ".parquet file or a Hub data set",
    ),
    (
        "--pipeline",
        "NAME",
        "one-pass (dense statistics; the default without --refine) or sequential (errors propagate)",
    ),
    ("--device", "D", "auto (default), cpu, cuda, cuda:1, ..."),
    ("--dtype", "T", "auto (default: the checkpoint's), bfloat16, float16, float32"),
    (
        "--format",
        "F",
        "dense (default: loads everywhere), packed (smaller; needs crepe) or sliced (smaller matrices; the default of "
        "image models)",
    ),
    ("--optimizer", "NAME", "of --finetune: sgd (default), adamw"),
]
_NUMBERS = [
    ("--sparsity", float, "S", "share of weights to remove (default 0.5; N:M has its own)"),
    ("--round-to", int, "N", "keep a multiple of N units in each layer (default 8 for --pattern channel, else 1)"),
    ("--samples", int, "N", "calibration rows (default 64) or images (256)"),
    ("--seqlen", int, "L", "tokens per calibration row (default 512)"),
    ("--refit-steps", int, "N", "steps of --refine refit on each block (default 96)"),
    ("--batch-size", int, "B", "rows per forward (default 8), halved where memory does not suffice; images (64)"),
    ("--seed", int, "S", "seed of every choice (default 0)"),
    ("--macs", float, "S", "image models: share of multiply-accumulates to keep, instead of --sparsity"),
    ("--filter-sparsity", float, "S", "image models: share of filters that deprune removes, if not that of --sparsity"),
    ("--finetune", int, "EPOCHS", "image models: train what is left on the images of --calibration"),
    ("--learning-rate", float, "R", "of --finetune (default 0.01), falling along a cosine"),
    ("--label-smoothing", float, "S", "of --finetune (default 0.1)"),
    ("--distill", float, "S", "of --finetune: the share of the loss that follows the dense network's outputs (0)"),
]
_SWITCHES = [
    ("--onnx", "image models: also write model.onnx, checked against onnxruntime"),
    ("--reorder-rows", "image models: bcbp puts rows that need the same columns into one tile, not neighbours"),
    ("--save-masks", "write masks.safetensors as well"),
    ("--trust-remote-code", "allow code from the model's repository"),
    ("--dry-run", "print blocks, tensors, memory, disk and time; touch nothing"),
    ("--resume", "go on with a run that was interrupted"),
    ("--overwrite", "replace an existing output or unfinished run"),
    ("--json", "print one JSON object"),
]


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "prune",
        help="prune a model and write a checkpoint",
        description="Prune a model and write a checkpoint that plain transformers loads.",
        epilog="example: crepe prune --model llama --pattern 2:4 --output llama-2of4",
        argument_default=argparse.SUPPRESS,
    )
    for flag, name, text in _TEXT:
        parser.add_argument(flag, metavar=name, help=text)
    for flag, kind, name, text in _NUMBERS:
        parser.add_argument(flag, type=kind, metavar=name, help=text)
    for flag, text in _SWITCHES:
        parser.add_argument(flag, action="store_true", help=text)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    given = {key: value for key, value in vars(arguments).items() if key not in ("run", "verb")}
    as_json = given.pop("json", False)
    if given.pop("dry_run", False):
        _dry_run(given, as_json)
        return
    from crepe.pipeline import distributed
    from crepe.pipeline.job import prune

    result = prune(given.pop("model", None), given.pop("output", None), **given)
    if distributed.is_main():
        _show(result, as_json)


def _show(result: Any, as_json: bool) -> None:
    from crepe.cli.output import emit, megabytes

    if hasattr(result, "macs"):
        emit(as_json, result.to_json(), _image_lines(result))
        return
    state = "removed" if result.sliced else "zero"
    lines = [
        f"{result.output}: {result.sparsity:.2%} of the weights in {len(result.tensors)} matrices are {state}, "
        f"{len(result.skipped)} tensors stay dense",
        f"{result.seconds:.1f} s, peak memory {megabytes(result.peak_memory_bytes)}",
        f"{_size(result)}; quality: crepe eval {result.output} --reference BASE_MODEL --save",
    ]
    emit(as_json, result.to_json(), [*lines, *(f"note: {note}" for note in result.notes)])


def _image_lines(result: Any) -> list[str]:
    parameters, macs = (f"{before:,} -> {after:,}" for before, after in (result.parameters, result.macs))
    lines = [
        f"{result.output}: {result.sparsity:.2%} of the weights in {len(result.tensors)} tensors are gone, "
        f"{len(result.skipped)} tensors stay dense",
        f"parameters {parameters}, multiply-accumulates per image {macs}",
        *_best_epoch(result.training),
        f"{result.seconds:.1f} s; accuracy and time: crepe eval {result.output} --data IMAGES --reference BASE_MODEL "
        "--latency --save",
    ]
    return [*lines, *(f"note: {note}" for note in result.notes)]


def _best_epoch(training: list[dict[str, float]]) -> list[str]:
    from crepe.vision.card import best_of

    if not training:
        return []
    best = best_of(training)
    return [
        f"kept epoch {best['epoch']:.0f} of {len(training)}: accuracy {best['accuracy']:.2%} on held-back images, loss "
        f"{best['loss']:.4f}"
    ]


def _image_dry_run(given: dict[str, Any], as_json: bool) -> None:
    from crepe.cli.output import emit
    from crepe.vision.job import plan

    found = plan(given)
    found["notes"] += _output_there(given)
    lines = [
        f"{len(found['layers'])} layers to cut, channels before and after:",
        *(f"  {name}  {before} -> {after}" for name, (before, after) in found["layers"].items()),
        *(f"  {name}  {before:,} -> {after:,} weights" for name, (before, after) in found["zeros"].items()),
        f"{len(found['skipped'])} tensors stay dense:",
        *(f"  {s['name']}  {' x '.join(map(str, s['shape']))}  ({s['reason']})" for s in found["skipped"]),
        *(f"{key} {found[key]['dense']:,} -> {found[key]['pruned']:,}" for key in ("parameters", "macs")),
        *(f"note: {note}" for note in found["notes"]),
    ]
    emit(as_json, found, lines)


def _size(result: Any) -> str:
    if result.packed:
        return _packed_size(result.packed)
    return _sliced_size(result.sliced) if result.sliced else "dense zeros: the same size and speed as before"


def _packed_size(packed: dict[str, Any]) -> str:
    from crepe.cli.output import megabytes

    dense = sum(about["layout"] is None for about in packed["tensors"].values())
    kept = f", {dense} of them stay dense (crepe.json says why)" if dense else ""
    return (
        f"packed: {megabytes(packed['file_bytes'])} instead of {megabytes(packed['dense_file_bytes'])}, the pruned "
        f"matrices {packed['pruned_bytes'] / packed['dense_pruned_bytes']:.4f} of their dense bytes{kept}"
    )


def _sliced_size(sliced: dict[str, Any]) -> str:
    keys = "a width for each layer: import crepe to load it"
    if not sliced["per_layer"]:
        keys = ", ".join(f"{key} {value}" for key, value in sliced["config"].items())
    return f"sliced: {sliced['parameters']:,} parameters instead of {sliced['dense_parameters']:,} ({keys})"


def _output_there(given: dict[str, Any]) -> list[str]:
    """A note where the run would stop at its output."""
    output = given.get("output")
    if not output or not Path(output).exists() or given.get("overwrite") or given.get("resume"):
        return []
    return [f"{output} exists: the run stops there; --overwrite replaces an output of crepe"]


def _dry_run(given: dict[str, Any], as_json: bool) -> None:
    from crepe.cli.output import emit, megabytes
    from crepe.models.kind import is_image_model
    from crepe.pipeline.job import prepare
    from crepe.pipeline.plan import estimate
    from crepe.recipe import build, choose

    recipe = build(given)
    if is_image_model(recipe.model, recipe.revision):
        _image_dry_run(given, as_json)
        return
    choices = choose(recipe)
    source, model, plan = prepare(recipe, choices)
    needs = estimate(
        model, plan, choices, in_memory=bool(source.gguf or recipe.weights or recipe.calibration == "self")
    )
    weights = sum(shape[0] * shape[1] for shape in plan.shapes.values())
    result = {
        "source": str(source),
        "blocks": [block.name for block in plan.blocks],
        "tensors": {name: list(shape) for name, shape in plan.shapes.items()},
        "skipped": [{"name": s.name, "shape": list(s.shape), "reason": s.reason} for s in plan.skipped],
        "expected": {"memory_bytes": needs.memory, "disk_bytes": needs.disk, "seconds": needs.seconds},
        "notes": plan.notes + _output_there(given),
        "recipe": recipe.result_fields,
    }
    lines = [
        f"{len(plan.blocks)} blocks, {len(plan.shapes)} matrices with {weights:,} weights to prune, "
        f"pattern {choices.pattern}, sparsity {choices.sparsity:g}",
        *(f"  {name}  {shape[0]} x {shape[1]}" for name, shape in plan.shapes.items()),
        f"{len(plan.skipped)} tensors stay dense:",
        *(f"  {s.name}  {' x '.join(map(str, s.shape))}  ({s.reason})" for s in plan.skipped),
        f"expected: memory {megabytes(needs.memory)}, disk {megabytes(needs.disk)}, "
        f"about {needs.seconds:.0f} s on this machine without loading"
        + (" and without writing the calibration text" if recipe.calibration == "self" else ""),
        "dense zeros: the output is as large and as fast as the dense model"
        if recipe.format == "dense"
        else f"format {recipe.format}: while it runs the disk holds what is expected at most",
        *(f"note: {note}" for note in result["notes"]),
    ]
    emit(as_json, result, lines)
