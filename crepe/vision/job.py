"""`crepe prune` for image models: from a recipe to a complete output folder, or a model in memory."""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crepe.checkpoint.manifest import read_manifest
from crepe.checkpoint.write import publish, require_replaceable
from crepe.errors import CrepeError, UsageError
from crepe.models.draws import seeded
from crepe.models.load import parse_device
from crepe.models.modes import evaluating
from crepe.models.resolve import announce
from crepe.pipeline.fingerprint import refuse_if_changed
from crepe.pipeline.journal import Journal, is_started, work_folder
from crepe.pipeline.result import RunResult, peak_memory
from crepe.vision.attention import cut_heads, head_masks, output_mask
from crepe.vision.balance import worst_imbalance
from crepe.vision.cost import macs, parameters
from crepe.vision.cut import channel_masks, cut, hold
from crepe.vision.distill import teacher_of
from crepe.vision.evidence import Evidence
from crepe.vision.fingerprint import image_fingerprint
from crepe.vision.graph import Graph
from crepe.vision.images import Images, batches, chosen, read_images, require_labels
from crepe.vision.load import label_ids_of, logits_of, open_image_model
from crepe.vision.preprocess import example_input
from crepe.vision.recipe import ImageChoices, build_image, choose_image
from crepe.vision.removal import removal_of
from crepe.vision.repairs import REPAIRS
from crepe.vision.save import ImageReport, save_image_model
from crepe.vision.select import Selection, select, zeros_after
from crepe.vision.source import resolve_image
from crepe.vision.statistics import STATISTICS


@dataclass
class ImageResult(RunResult):
    """What a run on an image model did. sparsity: share of the weights of the pruned layers that went or are zero:
    rows and columns of what was cut, rows alone where a mask stands for the cut.

    row_orders: layer -> order in which its rows are cut into tiles, where that is not theirs.
    parameters, macs: of the dense network and of what is left. training: per epoch, what the fine-tuning measured.
    """

    parameters: tuple[int, int]
    macs: tuple[int, int]
    layers: dict[str, dict[str, Any]] = field(repr=False, default_factory=dict)
    tensors: dict[str, ImageReport] = field(repr=False, default_factory=dict)
    training: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    attributes: dict[str, dict[str, Any]] = field(repr=False, default_factory=dict)
    row_orders: dict[str, list[int]] = field(repr=False, default_factory=dict)
    model: Any = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        keys = ("output", "sparsity", "seconds", "peak_memory_bytes", "skipped", "source", "training", "notes")
        counts = {
            key: {"dense": pair[0], "pruned": pair[1]}
            for key, pair in (("parameters", self.parameters), ("macs", self.macs))
        }
        return {key: getattr(self, key) for key in keys} | counts | {"tensors": len(self.tensors)}


def prune_image_model(given: dict[str, Any], started: float) -> ImageResult:
    """A model by name. given: fields of the recipe, `model` and `output` among them.

    Raises:
        CrepeError: one line that says what was wrong and what to do (UsageError for wrong words).
    """
    recipe = build_image(given)
    if recipe.output is None:
        raise UsageError("no output: give --output with the folder to write")
    choices, output, device = choose_image(recipe), Path(recipe.output), parse_device(recipe.device)
    source = resolve_image(recipe.model, recipe.weights, recipe.revision)
    announce(source)
    if output.exists():
        require_replaceable(output, source.source.folder)
    fingerprint = image_fingerprint(recipe, source, device)
    if output.exists() and not recipe.overwrite and not (recipe.resume and is_started(output)):
        return _already_there(choices, fingerprint, output)
    model, preprocess = open_image_model(source), source.preprocessor()
    images = _images(choices, model)
    run = _Run(choices, model, preprocess, images, device, example_input(preprocess, seed=recipe.seed))
    graph = Graph(model, run.example)
    with seeded(recipe.seed, device):
        selection = run.selection(graph)
    journal = Journal.open(output, fingerprint, recipe.resume, recipe.overwrite)
    try:
        with seeded(recipe.seed, device):
            result = run.carry_out(graph, selection, journal.folder, str(source), started)
        final = save_image_model(journal.folder, run.model, source, preprocess, run.about(result, fingerprint))
        publish(final, output, recipe.overwrite or recipe.resume)
    except CrepeError:
        if not any(journal.folder.glob("*.safetensors")):
            shutil.rmtree(journal.folder, ignore_errors=True)
        raise
    result.output, result.model = str(output), None
    return result


def prune_image_object(model: nn.Module, example: Tensor, given: dict[str, Any], started: float) -> ImageResult:
    """A module in memory, cut in place; it stays on its device. example: pixel values (count, 3, height, width).

    given: fields of the recipe, and `preprocess`, which turns a list of pictures into such values, where the method,
    a repair or fine-tuning needs images.

    Raises:
        UsageError: an output is asked for (a module in memory is saved by who knows how to build it), or images are
            needed and there is no `preprocess`.
    """
    given = dict(given)
    preprocess = given.pop("preprocess", None)
    recipe = build_image({"model": type(model).__name__, **given})
    choices, device = choose_image(recipe), next(model.parameters()).device
    if recipe.output is not None:
        raise UsageError("output: a module in memory is pruned in place; save its state_dict and crepe.vision.shapes")
    if choices.needs_images and preprocess is None:
        raise UsageError("preprocess: give the function that turns a list of pictures into pixel values")
    frozen = frozenset(name for name, p in model.named_parameters() if not p.requires_grad)
    images = _images(choices, model)
    # Graph, costs and cut are worked out on the CPU; only what reads the images runs on the device.
    run = _Run(choices, model.to("cpu"), preprocess, images, device, example.to("cpu"), frozen)
    with evaluating(model):
        try:
            graph = Graph(model, run.example)
            with seeded(recipe.seed, device):
                selection = run.selection(graph)
            with seeded(recipe.seed, device):
                result = run.carry_out(graph, selection, None, type(model).__name__, started)
        finally:
            model.to(device)
    result.model = model
    return result


def _images(choices: ImageChoices, model: Any) -> Images | None:
    """The labelled images of --calibration, checked, where anything needs them."""
    if not choices.needs_images:
        return None
    images = read_images(choices.recipe.calibration, "calibration", label_ids_of(model))
    if choices.recipe.finetune:
        from crepe.vision.train import split

        split(images, choices.recipe.seed)  # too few images are said before anything is touched
    return images


def _already_there(choices: ImageChoices, fingerprint: dict[str, Any], output: Path) -> ImageResult:
    """A complete output: the answer to --resume when the kill came after the last step, an error otherwise."""
    if not choices.recipe.resume:
        raise CrepeError(f"{output} exists: choose another --output, or replace it with --overwrite")
    content = read_manifest(output)
    refuse_if_changed(content.get("fingerprint", {}), fingerprint, output)
    shutil.rmtree(work_folder(output), ignore_errors=True)
    tensors = {name: ImageReport(**about) for name, about in content["tensors"].items()}
    return ImageResult(
        str(output),
        content["sparsity"],
        0.0,
        0,
        content["skipped"],
        content["base_model"]["name"],
        (content["parameters"]["dense"], content["parameters"]["pruned"]),
        (content["macs"]["dense"], content["macs"]["pruned"]),
        content["layers"],
        tensors,
        content["training"],
        content["notes"],
    )


@dataclass
class _Run:
    """What a run works on."""

    choices: ImageChoices
    model: nn.Module
    preprocess: Any
    images: Images | None
    device: torch.device
    example: Tensor
    frozen: frozenset[str] = frozenset()  # parameters that nothing trains

    def selection(self, graph: Graph) -> Selection:
        """What goes, by the method's parts and what they need to know of the images."""
        evidence = None
        if self.choices.needs_evidence:
            pixels = [one for one, _ in self._calibration()]
            evidence = Evidence(graph, pixels, self.device)
        return select(graph, self.choices, self.example, self.statistics(graph), evidence)

    def statistics(self, graph: Graph) -> dict[str, dict[str, Tensor]]:
        """What the method's parts need to know of the images: group name -> statistics."""
        found: dict[str, dict[str, Tensor]] = {}
        if self.images is None:
            return found
        if self.choices.needs_labels:
            with torch.no_grad():
                classes = logits_of(self.model(self.example)).shape[1]
            require_labels(self.images, classes, "this run")
        recipe, model = self.choices.recipe, self.model.to(self.device)
        groups = [group for group in graph.groups if group.obstacle is None]
        rows = chosen(self.images, recipe.samples, recipe.seed)
        for name in sorted(self.choices.method.needs & set(STATISTICS)):
            values = STATISTICS[name](model, groups, batches(rows, self.preprocess, recipe.batch_size), self.device)
            for group, of_channels in values.items():
                found.setdefault(group, {})[name] = of_channels
        self.model.to("cpu")
        return found

    def carry_out(
        self, graph: Graph, selection: Selection, work: Path | None, source: str, started: float
    ) -> ImageResult:
        """Zero or remove what was selected, and train what is left."""
        dense = parameters(self.model), macs(self.model, self.example)
        reports, shapes = _reports(self.model, selection), _shapes(self.model)
        teacher = teacher_of(self.model) if self.choices.recipe.distill else None
        self._turn(selection)
        self._repair_before(graph, selection)
        hold(self.model, selection.masks)
        attributes: dict[str, dict[str, Any]] = {}
        if self.choices.recipe.format == "dense":
            removal = _removal_masks(self.model, selection)
            both = {name: removal[name] & mask for name, mask in selection.masks.items() if name in removal}
            masks = {**removal, **selection.masks, **both}
            hold(self.model, masks)
        else:
            cut(graph, selection.groups, selection.kept)
            attributes = {found.name: cut_heads(self.model, found, choice) for found, choice in selection.heads}
            masks = zeros_after(self.model, selection)
            reports = _after_cut(reports, shapes, self.model, masks)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in self.frozen)
        self._repair_after(masks)
        training = self._train(masks, work, teacher)
        seconds, zeros = time.perf_counter() - started, sum(report.zeros for report in reports.values())
        left = macs(self.model, self.example)
        return ImageResult(
            None,
            zeros / sum(report.total for report in reports.values()),
            seconds,
            peak_memory(),
            [{"name": s.name, "shape": list(s.shape), "reason": s.reason} for s in selection.skipped],
            source,
            (dense[0], parameters(self.model)),
            (dense[1], left),
            _layers(selection),
            reports,
            training,
            _notes(self.choices, selection, left / dense[1]),
            attributes=attributes,
            row_orders={name: order.tolist() for name, order in selection.orders.items()},
        )

    def _turn(self, selection: Selection) -> None:
        """Rotate the heads that are about to lose dimensions, where the method wants that."""
        if not selection.heads or not any(getattr(part, "rotates", False) for part in self.choices.method.parts):
            return
        from crepe.vision.turn import turn_heads

        attentions = [attention for attention, _ in selection.heads]
        turn_heads(self.model.to(self.device), attentions, self._calibration(), self.example)
        self.model.to("cpu")

    def _repair_before(self, graph: Graph, selection: Selection) -> None:
        for name in self.choices.recipe.refine:
            repair = REPAIRS.get(name).before
            if repair is not None:
                outputs = {f"{a.output}.weight": output_mask(self.model, a, choice) for a, choice in selection.heads}
                removal = removal_of(graph, selection.groups, selection.kept, {**outputs, **selection.masks})
                repair(self.model.to(self.device), removal, self._calibration())
                self.model.to("cpu")

    def _repair_after(self, masks: dict[str, Tensor]) -> None:
        for name in self.choices.recipe.refine:
            repair = REPAIRS.get(name).after
            if repair is not None:
                repair(self.model.to(self.device), self._calibration())
                hold(self.model.to("cpu"), masks)

    def _calibration(self) -> Iterator[tuple[Tensor, Tensor]]:
        recipe = self.choices.recipe
        if self.images is not None:
            yield from batches(chosen(self.images, recipe.samples, recipe.seed), self.preprocess, recipe.batch_size)

    def _train(self, masks: dict[str, Tensor], work: Path | None, teacher: nn.Module | None) -> list[dict[str, float]]:
        if not self.choices.recipe.finetune or self.images is None:
            return []
        from crepe.vision.train import finetune

        recipe = self.choices.recipe
        return finetune(self.model, self.images, self.preprocess, recipe, masks, self.device, work, teacher)

    def about(self, result: ImageResult, fingerprint: dict[str, Any]) -> dict[str, Any]:
        """What only the run knows of its result, for the manifest."""
        return {"result": result, "recipe": self.choices.recipe, "images": self.images, "fingerprint": fingerprint}


def _reports(model: nn.Module, selection: Selection) -> dict[str, ImageReport]:
    """Weights removed or zeroed in each layer, from the dense shapes."""
    found: dict[str, ImageReport] = {}
    heads = {f"{name}.weight" for a, _ in selection.heads for name in (a.query, a.key, a.value)}
    masks = _removal_masks(model, selection)
    for name in [*masks, *selection.masks]:
        if name.endswith(".weight") and model.get_parameter(name).dim() > 1:
            mask = masks.get(name, torch.ones(1, dtype=torch.bool)) & selection.masks.get(
                name, torch.ones(1, dtype=torch.bool)
            )
            zeros = mask.numel() - int(mask.sum())
            pattern = selection.patterns.get(name, "head" if name in heads else "channel")
            found[name] = ImageReport(list(model.get_parameter(name).shape), pattern, zeros, mask.numel())
    return found


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(p.shape) for name, p in model.named_parameters() if name.endswith(".weight") and p.dim() > 1}


def _after_cut(
    reports: dict[str, ImageReport], before: dict[str, list[int]], model: nn.Module, masks: dict[str, Tensor]
) -> dict[str, ImageReport]:
    """The reports with what a cut takes besides the rows of the channels: the columns of the layers that read them.

    before: shapes of the dense weights. masks: parameter -> False where a weight that stays is zero.
    """
    found: dict[str, ImageReport] = {}
    for name, shape in before.items():
        weight = model.get_parameter(name)
        if name in reports or list(weight.shape) != shape:
            stays = int(masks[name].sum()) if name in masks else weight.numel()
            pattern = reports[name].pattern if name in reports else "channel"
            found[name] = ImageReport(shape, pattern, math.prod(shape) - stays, math.prod(shape))
    return found


def _removal_masks(model: nn.Module, selection: Selection) -> dict[str, Tensor]:
    """Masks of everything that makes a removed channel or a removed dimension of a head."""
    masks = channel_masks(model, selection.groups, selection.kept)
    for attention, choice in selection.heads:
        masks |= head_masks(model, attention, choice)
    return masks


def _layers(selection: Selection) -> dict[str, dict[str, Any]]:
    """Widths before and after, and the channels that stay."""
    return {
        group.name: {
            "channels": group.width,
            "kept": group.channels(selection.kept[group.name]).tolist(),
            "tied": [member.name for member in (*group.makers[1:], *group.followers)],
        }
        for group in selection.groups
    }


def _notes(choices: ImageChoices, selection: Selection, left: float | None = None) -> list[str]:
    """left: share of the multiply-accumulates after the cut, None before it."""
    notes = []
    asked = choices.macs if choices.recipe.format != "dense" else None
    if left is not None and asked is not None and left > asked:
        notes.append(f"macs: {left:.3f} are left, more than asked for: see what was skipped, and why")
    odd = [g.name for g in selection.groups if (len(selection.kept[g.name]) * g.folds) % 8]
    if odd and choices.recipe.format == "sliced":
        notes.append(
            f"{len(odd)} layers have widths that are no multiple of 8, such as {odd[0]}, which many devices run "
            "slowly: --round-to 8 aligns them"
        )
    worst = worst_imbalance(selection.masks, selection.patterns, selection.orders)
    if worst is not None:
        notes.append(f"work of the fullest tile of rows: {worst:.2%} above the mean of its layer, at worst")
    return notes


def plan(given: dict[str, Any]) -> dict[str, Any]:
    """What `--dry-run` prints: the layers with the widths they would get, and what stays dense. Touches nothing."""
    recipe = build_image({**given, "output": None})
    choices = choose_image(recipe)
    source = resolve_image(recipe.model, recipe.weights, recipe.revision)
    announce(source)
    model, preprocess = open_image_model(source), source.preprocessor()
    run = _Run(choices, model, preprocess, _images(choices, model), parse_device("cpu"), example_input(preprocess))
    graph = Graph(model, run.example)
    with seeded(recipe.seed, run.device):
        selection = run.selection(graph)
    smaller = copy.deepcopy(model)
    cut(Graph(smaller, run.example), selection.groups, selection.kept)
    for attention, choice in selection.heads:
        cut_heads(smaller, attention, choice)
    return {
        "source": str(source),
        "layers": {name: [about["channels"], len(about["kept"])] for name, about in _layers(selection).items()},
        "zeros": {name: [mask.numel(), int(torch.count_nonzero(mask))] for name, mask in selection.masks.items()},
        "skipped": [{"name": s.name, "shape": list(s.shape), "reason": s.reason} for s in selection.skipped],
        "parameters": {"dense": parameters(model), "pruned": parameters(smaller)},
        "macs": {"dense": macs(model, run.example), "pruned": macs(smaller, run.example)},
        "notes": _notes(choices, selection),
        "recipe": recipe.result_fields,
    }
