"""The model card and report of a pruned image model."""

from __future__ import annotations

from typing import Any

from crepe.checkpoint.card import command
from crepe.vision.recipe import DEFAULTS


def card(manifest: dict[str, Any], evaluation: dict[str, Any] | None) -> str:
    """README.md of an output folder. manifest: crepe.json; evaluation: evaluation.json where there is one."""
    parts = [
        f"---\n{_metadata(manifest, evaluation)}---",
        f"# {title(manifest)}",
        _summary(manifest),
        "## Before and after\n\n" + _markdown(("", "dense", "pruned"), comparison(manifest, evaluation)),
        "## Use\n\n" + _use(manifest),
        "## How it was made\n\n" + _recipe(manifest),
    ]
    return "\n\n".join(parts) + "\n"


def title(manifest: dict[str, Any]) -> str:
    base = manifest["base_model"]["name"].split("/")[-1]
    left = manifest["macs"]["pruned"] / manifest["macs"]["dense"]
    return f"{base}, {manifest['recipe']['method']}, {left:.0%} of the multiply-accumulates"


def comparison(manifest: dict[str, Any], evaluation: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    """Rows (what, dense, pruned) of the before/after table."""
    rows = [
        (name, f"{manifest[key]['dense']:,}", f"{manifest[key]['pruned']:,}")
        for name, key in (("parameters", "parameters"), ("multiply-accumulates per image", "macs"))
    ]
    return rows + measured(evaluation) if evaluation else [*rows, ("top-1 accuracy", "not measured", "not measured")]


def measured(evaluation: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of what `crepe eval` found."""
    dense = evaluation.get("reference_accuracy")
    where = f"top-1 accuracy ({evaluation['images']} images of {evaluation['data']})"
    rows = [(where, f"{dense:.2%}" if dense is not None else "not measured", f"{evaluation['accuracy']:.2%}")]
    if dense is not None:
        rows.append(("same class as the dense model", "100 %", f"{evaluation['top1_agreement']:.2%}"))
    for line in evaluation.get("latency") or ():
        where = f"{line['what']}, batch {line['batch']}, {line['device']}, {line['threads']} threads"
        before = f"{line['dense']:.2f} ms" if line["dense"] is not None else "-"
        rows.append((where, before, f"{line['pruned']:.2f} ms" if line["pruned"] is not None else "-"))
    return rows


def _summary(manifest: dict[str, Any]) -> str:
    base = manifest["base_model"]
    revision = f" at revision `{base['revision']}`" if base["revision"] else ""
    layers = manifest["layers"]
    gone = sum(about["channels"] - len(about["kept"]) for about in layers.values())
    total = sum(about["channels"] for about in layers.values())
    sliced = manifest["recipe"]["format"] == "sliced"
    cut = f"{gone:,} of the {total:,} channels of {len(layers)} layers {'are removed' if sliced else 'are zero'}. "
    return (
        f"`{base['name']}`{revision}, pruned with [crepe](https://pypi.org/project/crepe-prune): "
        f"{cut if layers else ''}{manifest['sparsity']:.2%} of the weights of {len(manifest['tensors'])} tensors are "
        f"gone. {len(manifest['skipped'])} tensors stay as they were; `crepe.json` says which and why."
    )


def _use(manifest: dict[str, Any]) -> str:
    if manifest["shapes"] or not manifest["native"]:
        lines = ["import crepe", "", 'model, preprocess = crepe.load("path/to/this/folder")']
        lines.append("logits = model(preprocess([picture]))")
    else:
        auto = manifest.get("auto_class", "AutoModelForImageClassification")
        lines = [f"from transformers import AutoImageProcessor, {auto}", ""]
        lines.append(f'model = {auto}.from_pretrained("path/to/this/folder")')
        lines.append('processor = AutoImageProcessor.from_pretrained("path/to/this/folder")')
    return "```python\n" + "\n".join(lines) + "\n```"


def _recipe(manifest: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {v}" for name, v in manifest["versions"].items())
    lines = [
        f"```\n{command(manifest['recipe'], DEFAULTS)}\n```",
        "",
        f"Versions: {versions}. Seed: {manifest['seed']}.",
    ]
    calibration, training = manifest["calibration"], manifest["training"]
    if calibration:
        lines.append(f"Images: {calibration['images']} from `{calibration['source']}`.")
    if training:
        best = best_of(training)
        share = manifest["recipe"].get("distill")
        taught = f" (distill {share}: that share of the loss follows the dense network's outputs)" if share else ""
        lines.append(
            f"Fine-tuned for {len(training)} epochs{taught}; the best, epoch {best['epoch']:.0f}, is right on "
            f"{best['accuracy']:.2%} of images held back from training."
        )
    return "\n".join(lines + [f"Note: {note}." for note in manifest["notes"]])


def best_of(training: list[dict[str, float]]) -> dict[str, float]:
    """The epoch whose weights were kept."""
    return max(training, key=lambda line: line["accuracy"])


def _metadata(manifest: dict[str, Any], evaluation: dict[str, Any] | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    base = manifest["base_model"]
    more: dict[str, Any] = {}
    if evaluation:
        more["model_name"] = title(manifest)
        more["eval_results"] = [
            EvalResult(
                task_type="image-classification",
                dataset_type="image-classification",
                dataset_name=str(evaluation["data"]),
                metric_type="accuracy",
                metric_value=round(evaluation["accuracy"], 4),
            )
        ]
    data = ModelCardData(
        base_model=base["name"] if base["name"].count("/") == 1 else None,
        license=base["licence"],
        pipeline_tag="image-classification",
        tags=["pruned", "crepe", manifest["recipe"]["method"]],
        **more,
    )
    return data.to_yaml() + "\n"


def _markdown(header: tuple[str, ...], rows: list[Any]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(manifest: dict[str, Any], evaluation: dict[str, Any] | None) -> str:
    """report.html: before and after, the width of each layer, the training, what stays dense."""
    import html

    from crepe.report.html import document, table
    from crepe.report.plots import bars

    layers = manifest["layers"]
    left = [len(about["kept"]) / about["channels"] for about in layers.values()]
    numbers = [str(i + 1) for i in range(len(layers))]  # names of layers are too long for an axis
    parts = [
        f"<h1>{html.escape(title(manifest))}</h1>",
        f"<pre>{html.escape(command(manifest['recipe'], DEFAULTS))}</pre>",
        "<h2>Before and after</h2>" + table(("", "dense", "pruned"), comparison(manifest, evaluation)),
    ]
    if layers:
        widths = [
            (f"{number} {name}", str(about["channels"]), str(len(about["kept"])))
            for number, (name, about) in zip(numbers, layers.items(), strict=True)
        ]
        parts += ["<h2>Channels that stay</h2>" + bars(numbers, left, "share of channels", 1.0)]
        parts += [_folded(f"All {len(layers)} cut layers", table(("layer", "dense", "kept"), widths))]
    if manifest["training"]:
        rows = [(f"{t['epoch']:.0f}", f"{t['loss']:.4f}", f"{t['accuracy']:.2%}") for t in manifest["training"]]
        parts += ["<h2>Fine-tuning</h2>" + table(("epoch", "loss", "accuracy on held-back images"), rows)]
    rows = [(s["name"], " x ".join(map(str, s["shape"])), s["reason"]) for s in manifest["skipped"]]
    parts += [_folded(f"{len(rows)} tensors that stay dense", table(("tensor", "shape", "reason"), rows))]
    return document(title(manifest), parts)


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>{content}</details>"
