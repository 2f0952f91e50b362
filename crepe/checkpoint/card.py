"""The model card: what was done, how to repeat it, what was gained and lost, what to expect."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

_NO_GAIN = (
    "The zeros are stored as ordinary numbers: this checkpoint loads everywhere, and it is **as large and as fast as "
    "the dense model**. Kernels or formats that use the zeros have to be applied on top."
)


def card(manifest: dict[str, Any], evaluation: dict[str, Any] | None) -> str:
    """README.md of an output folder. manifest: crepe.json; evaluation: evaluation.json where there is one."""
    parts = [
        f"---\n{_metadata(manifest, evaluation)}---",
        f"# {_title(manifest)}",
        _summary(manifest),
        "## Before and after\n\n" + _numbers(evaluation),
        "## Size and speed\n\n" + _size(manifest),
        "## Use\n\n" + _use(manifest),
        "## How it was made\n\n" + _recipe(manifest),
    ]
    return "\n\n".join(parts) + "\n"


_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```"""


_USE_PACKED = """Only crepe can read the packed weights: `pip install crepe-prune`, and import it before loading.

```python
import crepe  # tells transformers how to read this checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```

`crepe convert FOLDER OUT --format dense` writes the dense checkpoint that loads everywhere, with the same weights."""


def _size(manifest: dict[str, Any]) -> str:
    if "packed" in manifest:
        return _packed_size(manifest["packed"])
    return _sliced_size(manifest) if "sliced" in manifest else _NO_GAIN


def _use(manifest: dict[str, Any]) -> str:
    if "packed" in manifest:
        return _USE_PACKED
    return _USE_WITH_CREPE if manifest.get("sliced", {}).get("per_layer") else _USE


def _packed_size(sizes: dict[str, Any]) -> str:
    dense = [name for name, about in sizes["tensors"].items() if about["layout"] is None]
    own, before = sizes["file_bytes"] / 1e6, sizes["dense_file_bytes"] / 1e6
    share = sizes["pruned_bytes"] / sizes["dense_pruned_bytes"]
    text = f"The weights take **{own:,.1f} MB** instead of {before:,.1f} MB; the pruned tensors alone {share:.4f} of "
    text += "their dense bytes. "
    unpacked = sum(about["layout"] is not None and not about["runs_packed"] for about in sizes["tensors"].values())
    text += f"{unpacked} tensors are unpacked when they are loaded: smaller on disk only. " if unpacked else ""
    text += f"{len(dense)} pruned tensors stay dense; `crepe.json` says why. " if dense else ""
    return text + "Speed was not measured."


_USE_WITH_CREPE = """The layers have different widths, which transformers does not know of by itself: import crepe first
(`pip install crepe-prune`), or loading fails.

```python
import crepe
""" + _USE.removeprefix("```python\n")


def _sliced_size(manifest: dict[str, Any]) -> str:
    sliced, pattern = manifest["sliced"], manifest["recipe"]["pattern"]
    share = 1 - sliced["parameters"] / sliced["dense_parameters"]
    return (
        f"The removed {pattern}s are cut out: the checkpoint has **{sliced['parameters']:,} parameters** instead of "
        f"{sliced['dense_parameters']:,}, {share:.1%} fewer, in ordinary smaller matrices. Speed was not measured."
    )


def _title(manifest: dict[str, Any]) -> str:
    base = manifest["base_model"]["name"].split("/")[-1]
    return f"{base}, {manifest['recipe']['pattern']} {manifest['sparsity']:.0%} pruned"


def _metadata(manifest: dict[str, Any], evaluation: dict[str, Any] | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    base = manifest["base_model"]
    is_hub_id = base["name"].count("/") == 1
    more: dict[str, Any] = {}
    if evaluation:
        more["model_name"] = _title(manifest)
        more["eval_results"] = [
            EvalResult(
                task_type="text-generation",
                dataset_type="text",
                dataset_name=str(evaluation["data"]),
                metric_type="perplexity",
                metric_name=f"token perplexity, windows of {evaluation['seqlen']}",
                metric_value=round(evaluation["token_perplexity"], 4),
            )
        ]
    data = ModelCardData(
        base_model=base["name"] if is_hub_id else None,
        license=base["licence"],
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["pruned", "sparse", "crepe", manifest["recipe"]["method"], manifest["recipe"]["pattern"]],
        **more,
    )
    return data.to_yaml() + "\n"


def _summary(manifest: dict[str, Any]) -> str:
    base = manifest["base_model"]
    revision = f" at revision `{base['revision']}`" if base["revision"] else ""
    tensors = manifest["tensors"]
    total = sum(about["total"] for about in tensors.values())
    state = "removed" if "sliced" in manifest else "zero"
    return (
        f"`{base['name']}`{revision}, pruned with [crepe](https://pypi.org/project/crepe-prune): "
        f"{manifest['sparsity']:.2%} of the {total:,} weights in {len(tensors)} matrices are {state}. "
        f"{len(manifest['skipped'])} tensors stay dense; `crepe.json` says which and why."
    )


def _numbers(evaluation: dict[str, Any] | None) -> str:
    if not evaluation:
        return "Not measured yet: `crepe eval THIS_FOLDER --reference BASE_MODEL --save` fills this table."
    tables = [_table(("", "dense", "pruned"), comparison(evaluation))]
    if task_results(evaluation):
        tables.append(_table(("lm-eval", "pruned"), task_results(evaluation)))
    return "\n\n".join(tables)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def comparison(evaluation: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows (what, dense, pruned) of the before/after table."""
    where = f"{evaluation['data']}, windows of {evaluation['seqlen']} tokens"
    dense = evaluation.get("reference_token_perplexity")
    rows = [
        (f"token perplexity ({where})", f"{dense:.2f}" if dense else "-", f"{evaluation['token_perplexity']:.2f}"),
    ]
    if dense:
        rows.append(("KL divergence from the dense model, nats per token", "0", f"{evaluation['kl_divergence']:.4f}"))
        rows.append(("same most likely token as the dense model", "100 %", f"{evaluation['top1_agreement']:.1%}"))
    return rows


def task_results(evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows (task and metric, value) of lm-eval, a table of their own: its quantities are not those above."""
    results = (evaluation.get("tasks") or {}).get("results", {})
    return [
        (f"{task}: {metric}", f"{value:.4f}")
        for task, numbers in results.items()
        for metric, value in numbers.items()
        if isinstance(value, float) and "stderr" not in metric
    ]


def command(recipe: dict[str, Any], defaults: Mapping[str, Any] | None = None) -> str:
    """The command line that repeats the run; defaults: those of its kind of model, where they are not the recipe's."""
    from dataclasses import asdict

    from crepe.recipe import Recipe

    default = {**asdict(Recipe()), **(defaults or {})}
    words = ["crepe", "prune", "--model", recipe["model"], "--output", "OUTPUT"]
    for key, value in recipe.items():
        if key == "model" or value in (default.get(key), []):
            continue
        flag = "--" + key.replace("_", "-")
        if value is True:
            words.append(flag)
        else:
            words += [flag, ",".join(value) if isinstance(value, (list, tuple)) else str(value)]
    return shlex.join(words)


def _recipe(manifest: dict[str, Any]) -> str:
    recipe = manifest["recipe"]
    versions = ", ".join(f"{name} {v}" for name, v in manifest["versions"].items())
    lines = [f"```\n{command(recipe)}\n```", "", f"Versions: {versions}. Seed: {manifest['seed']}."]
    calibration = manifest["calibration"]
    if calibration:
        lines.append(
            f"Calibration: {calibration['samples']} rows of {calibration['seqlen']} tokens from "
            f"`{calibration['source']}` (sha256 of the tokens `{calibration['sha256'][:16]}`)."
        )
    return "\n".join(lines + [f"Note: {note}." for note in manifest["notes"]])
