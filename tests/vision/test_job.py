"""An image model from folder to folder: prune, load, evaluate, and every way in which that cannot be done."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import crepe
from conftest import fails
from crepe.cli.main import build_parser, main
from crepe.models.kind import is_image_config
from crepe.vision import job
from crepe.vision.cut import answer
from crepe.vision.load import logits_of
from crepe.vision.nets.cifar_resnet import CifarResNet
from crepe.vision.preprocess import example_input
from crepe.vision.recipe import build_image
from image_data import STEPS, hugging_face_folder, net_folder, parquet, picture
from image_families import Grouped, Separable, plain
from runs import files_of

EXAMPLE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("job")
    return {"net": net_folder(folder / "net"), "data": parquet(folder / "a.parquet", 30)}


def _logits(folder: str) -> torch.Tensor:
    model, _ = crepe.load(folder)
    with torch.no_grad():
        return logits_of(model(EXAMPLE))


def test_prune_load_and_evaluate(place: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "out")
    arguments = ["--method", "l2", "--sparsity", "0.5", "--round-to", "2", "--json"]
    assert main(["prune", "--model", place["net"], "--output", output, *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"output", "sparsity", "seconds", "peak_memory_bytes", "skipped"} <= result.keys()
    assert result["sparsity"] == 0.5 and result["macs"]["pruned"] < result["macs"]["dense"]
    assert [s["reason"].split()[0] for s in result["skipped"]] == ["additions", "nothing"]
    assert load_file(f"{output}/model.safetensors")["layer3.0.conv1.weight"].shape == (16, 16, 3, 3)
    assert main(["eval", output, "--data", place["data"], "--reference", place["net"], "--save", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 30 and 0 <= found["accuracy"] <= 1
    assert {"reference_accuracy", "top1_agreement", "parameters", "macs"} <= found.keys()
    assert main(["eval", output, "--data", place["data"], "--max-images", "4"]) == 0
    assert "top-1 accuracy (4 images of a.parquet)" in capsys.readouterr().out
    assert "top-1 accuracy (30 images" in Path(output, "README.md").read_text()
    assert main(["report", output]) == 0


@pytest.mark.parametrize("samples", [64, 256])
def test_the_command_in_the_card_repeats_the_run(samples: int, place: dict[str, str], tmp_path: Path) -> None:
    """64 is the default of language models, 256 that of image models."""
    fields = {"method": "fpgm", "samples": samples, "batch_size": 8, "refine": "bn", "format": "dense"}
    crepe.prune(place["net"], tmp_path / "out", calibration=place["data"], sparsity=0.5, **fields)
    card = (tmp_path / "out" / "README.md").read_text()
    line = next(line for line in card.splitlines() if line.startswith("crepe prune"))
    given = vars(build_parser().parse_args(shlex.split(line)[1:]))
    given = {key: value for key, value in given.items() if key not in ("run", "verb")}
    made = json.loads((tmp_path / "out" / "crepe.json").read_text())["recipe"]
    assert json.loads(json.dumps(build_image(given).result_fields)) == made


def test_one_layer_names_all_that_hang_together() -> None:
    """Channels that additions tie go from all layers or from none, whichever of them is named."""
    found = {}
    for case, fields in {
        "left": {},
        "first": {"include": "conv1"},
        "later": {"include": "layer1.0.conv2"},
        "both": {"include": "conv1", "exclude": "layer1.0.conv2"},
    }.items():
        result = crepe.prune(CifarResNet(8), example=EXAMPLE, method="l2", sparsity=0.5, **fields)
        found[case] = {s["name"]: s["reason"].split()[0] for s in result.skipped}.get("conv1.weight")
    assert found == {"left": "additions", "first": "the", "later": "the", "both": "excluded"}


def test_a_model_in_memory_numbers_folders_by_its_own_names(tmp_path: Path) -> None:
    """In the order of the alphabet the last class would be the first; the folder itself names three of the five."""
    from transformers import ResNetConfig, ResNetForImageClassification

    ids = {name: number for number, name in enumerate(["zebra", "yak", "wolf", "viper", "urial"])}
    for number, name in enumerate(["yak", "zebra", "viper"]):
        (tmp_path / name).mkdir()
        for index in range(2):
            picture(number + 5 * index).save(tmp_path / name / f"{index}.png")
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(**sizes, label2id=ids, id2label={i: n for n, i in ids.items()}))
    fields = {"example": EXAMPLE, "preprocess": STEPS, "calibration": str(tmp_path), "method": "taylor"}
    assert crepe.prune(model.eval(), sparsity=0.5, **fields).layers
    (tmp_path / "horse").mkdir()
    with pytest.raises(crepe.CrepeError, match="folder 'horse', which is no class of the model"):
        crepe.prune(model.eval(), sparsity=0.5, **fields)


def test_zeroed_and_sliced_folders_compute_the_same(place: dict[str, str], tmp_path: Path) -> None:
    for kind in ("dense", "sliced"):
        crepe.prune(place["net"], tmp_path / kind, method="fpgm", sparsity=0.25, format=kind)
    dense, sliced = _logits(str(tmp_path / "dense")), _logits(str(tmp_path / "sliced"))
    assert float((dense - sliced).abs().max()) <= 1e-5 * float(dense.abs().max().clamp(min=1))
    assert not torch.equal(dense, _logits(place["net"]))
    state, manifest = (
        load_file(tmp_path / "dense" / "model.safetensors"),
        json.loads((tmp_path / "dense" / "crepe.json").read_text()),
    )
    for name, about in manifest["tensors"].items():
        assert int((state[name] == 0).sum()) == about["zeros"] and list(state[name].shape) == about["shape"]


def test_what_a_cut_takes_is_counted_in_rows_and_columns(place: dict[str, str], tmp_path: Path) -> None:
    crepe.prune(place["net"], tmp_path / "out", method="l2", sparsity=0.25)
    dense, state = (load_file(f"{folder}/model.safetensors") for folder in (place["net"], tmp_path / "out"))
    tensors = json.loads((tmp_path / "out" / "crepe.json").read_text())["tensors"]
    smaller = {name for name in state if dense[name].dim() > 1 and dense[name].shape != state[name].shape}
    assert set(tensors) == smaller and any(name.endswith("conv2.weight") for name in smaller)
    assert all(about["zeros"] == dense[name].numel() - state[name].numel() for name, about in tensors.items())
    masked = crepe.prune(place["net"], tmp_path / "masked", method="l2", sparsity=0.25, format="dense").tensors
    assert {name for name in tensors if not name.endswith("conv2.weight")} == set(masked)
    assert all(tensors[name]["zeros"] == about.zeros for name, about in masked.items())


@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "resnet", "mobilenet-v2"])
def test_hugging_face_models_in_and_out(name: str, tmp_path: Path) -> None:
    """Where the config can say the widths, plain transformers loads the folder; crepe loads every one."""
    from transformers import AutoModelForImageClassification

    folder, output = hugging_face_folder(tmp_path / name, name), tmp_path / "out"
    result = crepe.prune(folder, output, method="l1", sparsity=0.5)
    assert result.parameters[1] < result.parameters[0]
    found, manifest = _logits(str(output)), json.loads((output / "crepe.json").read_text())
    assert manifest["native"] == (name in ("vit", "swin"))
    assert (output / "preprocessor_config.json").is_file()
    if not manifest["native"]:
        with pytest.raises(ValueError, match="only crepe can read these widths"):
            AutoModelForImageClassification.from_pretrained(output)
    else:
        model = AutoModelForImageClassification.from_pretrained(output).eval()
        with torch.no_grad():
            assert torch.equal(model(EXAMPLE).logits, found)
    again = crepe.prune(str(output), tmp_path / "twice", method="l1", sparsity=0.5)
    assert again.parameters == (result.parameters[1], again.parameters[1]) and again.parameters[1] < again.parameters[0]
    _logits(str(tmp_path / "twice"))


def _encoder(name: str) -> Any:
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    config = getattr(transformers, "ViTMAEConfig" if "MAE" in name else name.replace("Model", "Config"))
    torch.manual_seed(0)
    return getattr(transformers, name)(config(**sizes, image_size=32, patch_size=8))


@pytest.mark.parametrize("name", ["ViTMAEForPreTraining", "ViTMAEModel", "ViTModel", "CLIPVisionModel"])
@pytest.mark.parametrize("method", ["l2", "toast"])
def test_encoders_without_a_classifier(
    name: str, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A masked autoencoder draws the patches that it sees, anew at every call."""
    from transformers import AutoModel, ViTImageProcessor

    folder, output, data = tmp_path / "dense", tmp_path / "out", parquet(tmp_path / "a.parquet", 30)
    _encoder(name).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    result = crepe.prune(str(folder), output, method=method, sparsity=0.5, calibration=data, samples=16)
    assert result.layers and result.macs[1] < result.macs[0]
    found = answer(crepe.load(str(output))[0], EXAMPLE)
    dense, preprocess = crepe.load(str(folder))
    fields = {"method": method, "sparsity": 0.5, "calibration": data, "samples": 16, "preprocess": preprocess}
    crepe.prune(dense, example=example_input(preprocess), **fields)
    torch.testing.assert_close(found, answer(dense, EXAMPLE))
    if json.loads((output / "crepe.json").read_text())["native"]:
        torch.testing.assert_close(answer(AutoModel.from_pretrained(output).eval(), EXAMPLE), found)
        assert "AutoModel.from_pretrained" in (output / "README.md").read_text()
    assert "expected logits (batch, classes)" in fails(capsys, 1, "eval", str(output), "--data", data)


@pytest.mark.parametrize(
    ("architecture", "more", "is_image"),
    [
        ("ViTMAEForPreTraining", {}, True),
        ("DeiTForImageClassificationWithTeacher", {}, True),
        ("YolosForObjectDetection", {}, False),
        ("VideoMAEModel", {"num_frames": 16}, False),
        ("Kosmos2Model", {"text_config": {}}, False),
        ("LlamaModel", {"vocab_size": 9}, False),
        ("BeitModel", {"vocab_size": 9}, True),
        ("ViltModel", {"vocab_size": 9}, False),
        ("NobodysModel", {"vocab_size": 9}, False),
    ],
)
def test_what_is_an_image_model(architecture: str, more: dict[str, Any], is_image: bool) -> None:
    """A head that crepe would lose is none of its business, and neither are words."""
    config = {"architectures": [architecture], "hidden_size": 32, "image_size": 32}
    assert is_image_config({**config, **more}) is is_image


def test_smaller_heads_stay_smaller_when_pruned_further(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    folder, heads = hugging_face_folder(tmp_path / "vit", "vit"), str(tmp_path / "heads")
    width = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTForImageClassification(ViTConfig(**width, image_size=32, patch_size=8, num_labels=5)).save_pretrained(folder)
    crepe.prune(folder, heads, method="toast", sparsity=0.5, calibration=parquet(tmp_path / "a.parquet", 30))
    model, _ = crepe.load(heads)
    assert model.vit.layers[1].attention.head_dim < 32
    crepe.prune(model, example=EXAMPLE, method="l2", sparsity=0.5)
    crepe.prune(heads, tmp_path / "further", method="l2", sparsity=0.5)
    with torch.no_grad():
        torch.testing.assert_close(_logits(str(tmp_path / "further")), logits_of(model(EXAMPLE)))


def test_projections_can_be_excluded_by_name(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "vit", "vit")
    model, _ = crepe.load(folder)
    query = next(name for name, _ in model.named_modules() if name.endswith(("query", "q_proj")))
    fields = {"sparsity": 0.5, "calibration": parquet(tmp_path / "a.parquet", 30)}
    result = crepe.prune(folder, tmp_path / "out", method="toast", exclude=f"*{query.split('.')[-1]}", **fields)
    assert not any("query" in name or "q_proj" in name for name in result.tensors)
    with pytest.raises(crepe.UsageError, match="--exclude 'nosuchlayer' matches no layer"):
        crepe.prune(folder, tmp_path / "none", method="bcbp", sparsity=0.5, exclude="nosuchlayer")


def test_a_share_of_multiply_accumulates_is_met_as_closely_as_channels_can(
    place: dict[str, str], tmp_path: Path
) -> None:
    for allocation in ("uniform", "bn-quantile"):
        result = crepe.prune(place["net"], tmp_path / allocation, macs=0.6, allocation=allocation)
        assert 0.5 < result.macs[1] / result.macs[0] <= 0.6
    with pytest.raises(
        crepe.CrepeError, match=r"macs = 0.01 is out of reach: with the fewest.*'uniform' leaves, 0\.\d+ is left"
    ):
        crepe.prune(place["net"], tmp_path / "out", macs=0.01)


def test_taylor_repairs_and_training_see_the_images(place: dict[str, str], tmp_path: Path) -> None:
    fields: dict[str, Any] = {"method": "taylor", "refine": "bn", "calibration": place["data"], "batch_size": 10}
    result = crepe.prune(place["net"], tmp_path / "a", sparsity=0.5, finetune=1, **fields)
    assert len(result.training) == 1
    manifest = json.loads((tmp_path / "a" / "crepe.json").read_text())
    assert manifest["calibration"] == {"source": "a.parquet", "images": 30} and len(manifest["training"]) == 1
    assert "Fine-tuned for 1 epochs; the best" in (tmp_path / "a" / "README.md").read_text()


def test_a_killed_run_is_resumed_to_the_same_bytes(
    place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"calibration": place["data"], "batch_size": 10, "finetune": 2, "distill": 0.5}
    crepe.prune(place["net"], tmp_path / "whole", **fields)
    assert "Fine-tuned for 2 epochs (distill 0.5: that share" in (tmp_path / "whole" / "README.md").read_text()

    def killed(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "save_image_model", killed)
        with pytest.raises(KeyboardInterrupt):
            crepe.prune(place["net"], tmp_path / "resumed", **fields)
    assert not (tmp_path / "resumed").exists()
    with pytest.raises(crepe.UsageError, match=r"recipe\.finetune was 2 and is now 3"):
        crepe.prune(place["net"], tmp_path / "resumed", resume=True, **{**fields, "finetune": 3})
    crepe.prune(place["net"], tmp_path / "resumed", resume=True, **fields)
    assert files_of(tmp_path / "resumed") == files_of(tmp_path / "whole")
    assert crepe.prune(place["net"], tmp_path / "resumed", resume=True, **fields).seconds == 0


def test_a_dry_run_touches_nothing(place: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "--model", place["net"], "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "layer1.0.conv1  8 -> 4" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_module_in_memory_is_cut_in_place() -> None:
    model = plain(Grouped)
    result = crepe.prune(model, example=EXAMPLE, method="l2", sparsity=0.5)
    assert result.model is model and model.grouped.weight.shape == (8, 2, 3, 3)
    assert logits_of(model(EXAMPLE)).shape == (2, 5)
    with pytest.raises(crepe.UsageError, match="preprocess: give the function"):
        crepe.prune(model, example=EXAMPLE, method="taylor", calibration="a.parquet")


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"sparsity": 0.99}, "leaves none"), ({"sparsity": 0.5, "finetune": 1}, "fine-tuning needs at least")],
)
def test_a_module_that_cannot_be_pruned_is_given_back_as_it_was(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = plain(Grouped).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = {"calibration": parquet(tmp_path / "a.parquet", 5), "preprocess": lambda found: EXAMPLE[: len(found)]}
    with pytest.raises(crepe.CrepeError, match=message):
        crepe.prune(model, example=EXAMPLE, method="l2", **images, **fields)
    assert model.training and all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_modes_and_frozen_parameters_stay() -> None:
    model = plain(Grouped).train()
    child = next(model.children())
    child.eval().requires_grad_(False)
    crepe.prune(model, example=EXAMPLE, method="l2", sparsity=0.5)
    assert model.training and not child.training
    assert not any(p.requires_grad for p in child.parameters()) and any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("method", ["l2", "deprune-obs"])
def test_a_module_in_memory_stays_on_its_device(method: str, device: str, tmp_path: Path) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    model, example = plain(Separable).to(device), EXAMPLE.to(device)
    fields = {"calibration": parquet(tmp_path / "a.parquet", 8), "refine": "sequential", "sparsity": 0.5}
    crepe.prune(model, example=example, method=method, preprocess=lambda found: EXAMPLE[: len(found)], **fields)
    assert next(model.parameters()).device.type == device and logits_of(model(example)).shape == (2, 5)


def test_taps_and_filters_have_a_sparsity_each() -> None:
    model = plain(Separable)
    crepe.prune(model, example=EXAMPLE, method="deprune-b", sparsity=0.6, filter_sparsity=0.25)
    assert model.project.weight.shape == (6, 32, 1, 1)
    assert int((model.depthwise.weight == 0).sum()) == int(0.6 * 32 * 9)


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (1, ["--sparsity", "0.99"], "leaves none: lower --sparsity, or --exclude"),
        (2, ["--method", "wanda"], "unknown method 'wanda'"),
        (2, ["--pattern", "2:4"], "pattern = '2:4': not for image models"),
        (2, ["--macs", "0.5", "--sparsity", "0.5"], "sparsity and macs"),
        (2, ["--macs", "0.5", "--method", "bcbp"], "macs: method 'bcbp' does not only remove channels"),
        (2, ["--filter-sparsity", "0.4"], "filter_sparsity: method 'l2' does not both zero weights and remove filters"),
        (2, ["--filter-sparsity", "1", "--method", "deprune-b"], "filter_sparsity 1 is not in 0 <= S < 1"),
        (2, ["--reorder-rows"], "reorder_rows: method 'l2' has no tiles of rows"),
        (2, ["--reorder-rows", "--method", "bcbp-obs"], "reorder_rows: method 'bcbp-obs' scores the tiles of"),
        (2, ["--method", "taylor"], "method 'taylor' needs images: give --calibration"),
        (2, ["--finetune", "1"], "fine-tuning needs images"),
        (2, ["--exclude", "nothing*"], "--exclude 'nothing*' matches no layer"),
        (1, ["--exclude", "*"], "finds nothing to prune in this model"),
        (2, ["--refine", "admm", "--calibration", "a.parquet"], "unknown refinement of image models 'admm'"),
        (2, ["--optimizer", "lion"], "unknown optimizer 'lion'"),
        (2, ["--recipe", "balanced"], "recipe 'balanced' is for language models"),
        (1, ["--finetune", "1", "--calibration", "gone.parquet"], "no image file at 'gone.parquet'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_touches_nothing(
    code: int,
    arguments: list[str],
    message: str,
    place: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    assert message in fails(capsys, code, "prune", "--model", place["net"], "--output", str(output), *arguments)
    assert not list(tmp_path.iterdir())


def test_words_of_images_are_refused_for_language_models() -> None:
    from crepe.recipe import build, choose

    for fields in ({"finetune": 1}, {"macs": 0.5}, {"onnx": True}):
        with pytest.raises(crepe.UsageError, match="only for image models"):
            choose(build({"model": "llama", **fields}))


def test_labels_and_weights_that_do_not_fit(
    place: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = parquet(tmp_path / "many.parquet", 20, classes=9)
    assert "the model has 5 classes" in fails(capsys, 1, "eval", place["net"], "--data", many)
    assert "no images: give --data" in fails(capsys, 2, "eval", place["net"])
    assert "an architecture without weights" in fails(capsys, 2, "eval", "resnet20-cifar10", "--data", many)
    weights = f"{place['net']}/model.safetensors"
    message = fails(capsys, 1, "eval", "resnet20-cifar10", "--weights", weights, "--data", many)
    assert "the weights of resnet20-cifar10 from" in message and "do not fit" in message
    Path(tmp_path / "broken.safetensors").write_bytes(b"12")
    message = fails(
        capsys, 1, "eval", "resnet20-cifar10", "--weights", str(tmp_path / "broken.safetensors"), "--data", many
    )
    assert "cannot read weights from" in message


def test_a_plan_lists_the_weights_that_become_zeros(tmp_path: Path) -> None:
    net = net_folder(tmp_path / "net")
    planned = job.plan({"model": net, "method": "bcbp", "sparsity": 0.25})
    done = crepe.prune(net, tmp_path / "out", method="bcbp", sparsity=0.25)
    assert planned["zeros"] and not planned["layers"]
    assert {n: before - after for n, (before, after) in planned["zeros"].items()} == {
        name: report.zeros for name, report in done.tensors.items()
    }
