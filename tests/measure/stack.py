"""The quality stack on one model: methods, allocations, refinements and recipes, pattern by pattern.

    python tests/measure/stack.py run    --calibration FILE --test FILE --folder DIR [--cases GLOB,...]
    python tests/measure/stack.py peer   --calibration FILE --test FILE --folder DIR --peer PYTHON
    python tests/measure/stack.py report --folder DIR

`run` prunes and evaluates every case that DIR does not hold yet, each in a process of its own, so that seconds,
processor seconds (which other work on the machine does not stretch) and peak memory are its own; it goes on where it
was stopped. Cases are called PATTERN/NAME, such as 2:4/sparsegpt. `peer` does the same with llm-compressor's SparseGPT;
PYTHON is an interpreter that has it. `report` prints the tables and draws the figures.

With --seed N both take other rows of the calibration text, and a case is called "2:4/sparsegpt seed N". --device cuda
prunes on a GPU, --jobs N takes N cases at once, --hours H stops starting cases after H hours; a line says so where one
was used. A GPU does not reach the peer's own process, which chooses for itself.

Calibration: 64 rows of 512 tokens, and as many as its recipe says for `best`. Perplexity on windows of 512 tokens of
the test text, and of Python's own reference manual as the text that is unlike the calibration text; KL to the dense
model on the test windows.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WINDOWS, OTHER_WINDOWS, SEQLEN = 32, 12, 512
PATTERNS = {"50%": {"sparsity": 0.5}, "60%": {"sparsity": 0.6}, "70%": {"sparsity": 0.7}}
PATTERNS |= {"2:4": {"pattern": "2:4"}, "4:8": {"pattern": "4:8"}}
UNTUNED = {"row": 1.0, "column": 1.0, "neighbourhood": 0.25, "form": "context", "kernel": 3, "activation": 0.5}
MASKS: dict[str, dict[str, Any]] = {
    "magnitude": {"method": "magnitude"},
    "wanda": {"method": "wanda"},
    "ria": {"method": "ria"},
    "crepe untuned": {"coefficients": UNTUNED},
    "crepe + pho": {},
}
ALLOCATIONS = ("owl", "alpha", "error")
REFINED = ("dsnot", "swaps", "optimal", "cg", "sparsegpt", "admm")
REFIT = {"refit 64 steps": {"refine": "refit", "refit_steps": 64}}
WHOLE = {
    "refit": {"refine": "refit"},  # the default number of steps, half an hour and more on one core
    "refit row by row": {"refine": "refit", "refit_steps": 192, "batch_size": 1},
}
GROUPED = ("permute", "fold")
FLOAT = {"sparsegpt in float32": {"refine": "sparsegpt", "dtype": "float32"}}  # as the peer runs
COMPARED = ("50%", "60%", "2:4")  # where an aim names the peer
RECIPES = ("fast", "balanced", "best")
# What the recipes were until 2026-11-26; N:M had `fold` before them.
FORMER: dict[str, dict[str, Any]] = {
    "former balanced": {"refine": "admm,refit", "refit_steps": 24, "batch_size": 4},
    "former best": {"refine": "admm,refit", "refit_steps": 96, "batch_size": 4, "samples": 128},
}
PEERS = {"float32": "llm-compressor sparsegpt", "bfloat16": "llm-compressor sparsegpt in bfloat16"}


def cases() -> dict[str, dict[str, Any]]:
    """Every case by name, with the fields of its recipe."""
    found: dict[str, dict[str, Any]] = {"dense": {}}
    for label, pattern in PATTERNS.items():
        grouped = "pattern" in pattern
        table = {**MASKS, **{name: {"refine": name} for name in REFINED}}
        table |= {**REFIT, **(FLOAT if label in COMPARED else {}), **(WHOLE if label == "2:4" else {})}
        if grouped:
            table |= {name: {"refine": name, "pipeline": "one-pass"} for name in GROUPED}
        else:
            table |= {f"allocation {name}": {"allocation": name} for name in ALLOCATIONS}
        folded = {"refine": "fold,admm,refit"} if grouped else {}
        table |= {name: {**fields, **folded} for name, fields in FORMER.items()}
        table |= {f"recipe {name}": {"recipe": name} for name in RECIPES}
        found |= {f"{label}/{name}": {**pattern, **fields} for name, fields in table.items()}
    return found


class Lines:
    """Measurements by case, one JSON line each."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "stack.jsonl"
        text = self.path.read_text() if self.path.is_file() else ""
        self.found = {line["case"]: line for line in map(json.loads, text.splitlines())}

    def add(self, line: dict[str, Any]) -> None:
        self.found[line["case"]] = line
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def one(given: argparse.Namespace) -> dict[str, Any]:
    """Prune and evaluate one case in this process."""
    import crepe
    from crepe.calibration.text import read_corpus
    from crepe.calibration.tokens import packed_rows
    from crepe.recipe import build

    fields = cases()[given.one]
    model, tokenizer = crepe.load(given.model, dtype=fields.pop("dtype", "bfloat16"), device=given.device)
    line: dict[str, Any] = {"case": _seeded(given.one, given)}
    if fields:
        samples = build({"model": "x", **{k: v for k, v in fields.items() if k in ("recipe", "samples")}}).samples
        rows = packed_rows(tokenizer, read_corpus(given.calibration), samples, SEQLEN, given.seed)
        start = time.process_time()
        result = crepe.prune(model, rows=rows, **_with_file(fields, given.folder))
        line["processor"] = time.process_time() - start
        raised = [n for n, r in result.tensors.items() if list(r.steps.values()) != sorted(r.steps.values())[::-1]]
        worse = [name for name, fits in result.fits.items() if any(after > before for before, after in fits.values())]
        assert not raised and not worse, (raised, worse)
        line |= {"sparsity": result.sparsity, "seconds": result.seconds, "peak": result.peak_memory_bytes}
        line["error"] = sum(report.error for report in result.tensors.values()) / len(result.tensors)
        line |= {"date": time.strftime("%Y-%m-%d"), "threads": torch.get_num_threads(), **_machine(given)}
    return line | _evaluate(model.to(torch.bfloat16), tokenizer, given)


def _machine(given: argparse.Namespace) -> dict[str, Any]:
    """What tables compare by; nothing for the CPU, where most of the lines were made."""
    if given.device == "cpu" and given.jobs == 1:
        return {}
    name = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    return {"machine": name, "jobs": given.jobs, "torch": torch.__version__}


def _seeded(name: str, given: argparse.Namespace) -> str:
    return f"{name} seed {given.seed}" if given.seed else name


def _wanted(name: str, given: argparse.Namespace) -> bool:
    return any(fnmatch.fnmatch(name, glob) for glob in given.cases.split(","))


def _with_file(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Coefficients reach a recipe as a file."""
    if not isinstance(fields.get("coefficients"), dict):
        return fields
    path = folder / "untuned.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in fields["coefficients"].items()))
    return {**fields, "coefficients": str(path)}


def _evaluate(model: Any, tokenizer: Any, given: argparse.Namespace) -> dict[str, Any]:
    import crepe
    from crepe.calibration.text import Corpus, read_corpus
    from crepe.calibration.tokens import windows
    from crepe.eval.perplexity import measure

    dense = crepe.load(given.model, dtype="bfloat16", device=given.device)[0]
    test = windows(tokenizer, read_corpus(given.test), SEQLEN, WINDOWS)
    manual = windows(tokenizer, Corpus("manual", _manual(), None), SEQLEN, OTHER_WINDOWS)
    found = measure(model, dense, test)
    return {
        "perplexity": found["token_perplexity"],
        "kl": found["kl_divergence"],
        "other": measure(model, None, manual)["token_perplexity"],
    }


def _manual() -> list[str]:
    """Python's reference manual, as the standard library carries it for `help()`."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def run(given: argparse.Namespace) -> None:
    """The cases that are not there yet, in the order of the globs, `jobs` at once."""
    from concurrent.futures import ThreadPoolExecutor

    lines, end = Lines(given.folder), time.monotonic() + 3600 * given.hours
    names = {name: None for glob in given.cases.split(",") for name in fnmatch.filter(cases(), glob)}
    wanted = [name for name in names if _seeded(name, given) not in lines.found]
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(lambda name: _run_one(name, lines, end, given), wanted))


def _run_one(name: str, lines: Lines, end: float, given: argparse.Namespace) -> None:
    if time.monotonic() > end:
        return
    command = [sys.executable, __file__, "run", "--one", name]
    for key in ("model", "folder", "seed", "calibration", "test", "device", "jobs"):
        command += [f"--{key}", getattr(given, key)]
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    line = json.loads(done.stdout.splitlines()[-1])
    lines.add(line)
    print(line["case"], f"{line['perplexity']:.2f}", f"{line.get('seconds', 0):.0f} s", flush=True)


PEER = """
import json, resource, sys, time, torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier
from transformers import AutoModelForCausalLM
folder, sparsity, structure, dtype = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder + "/model", dtype=getattr(torch, dtype))
rows = json.load(open(folder + "/rows.json"))
data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
# Blocks as targets, in a list: "Linear" as a string matches nothing, without a word, and in a list it prunes the output
# embedding, which is tied to the input embedding, in spite of ignore=["lm_head"].
targets = [type(model.model.layers[0]).__name__]
embedding = model.model.embed_tokens.weight.clone()
recipe = SparseGPTModifier(sparsity=float(sparsity), mask_structure=structure, targets=targets)
start, busy = time.perf_counter(), time.process_time()
oneshot(model=model, dataset=data, recipe=[recipe], max_seq_length=512, num_calibration_samples=len(rows))
seconds, busy = time.perf_counter() - start, time.process_time() - busy
model.save_pretrained(folder + "/pruned")
assert (model.model.layers[0].mlp.down_proj.weight == 0).float().mean() > 0.4, "nothing was pruned"
assert torch.equal(model.model.embed_tokens.weight.cpu(), embedding), "the embedding was pruned"
print("DONE", json.dumps([seconds, busy, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def peer(given: argparse.Namespace) -> None:
    """llm-compressor's SparseGPT with the same rows, beside which `run` is held: in float32, which is what it makes of
    this model by default, or in bfloat16."""
    import tempfile

    import crepe
    from crepe.calibration.text import read_corpus
    from crepe.calibration.tokens import packed_rows

    lines = Lines(given.folder)
    folder = Path(tempfile.mkdtemp())
    model, tokenizer = crepe.load(given.model, dtype="bfloat16")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "pruned")
    rows: Tensor = packed_rows(tokenizer, read_corpus(given.calibration), 64, SEQLEN, given.seed)
    (folder / "rows.json").write_text(json.dumps(rows.tolist()))
    for label, fields in PATTERNS.items():
        wanted = f"{label}/{PEERS[given.peer_dtype]}"
        name = _seeded(wanted, given)
        if name in lines.found or not _wanted(wanted, given):
            continue
        structure = str(fields.get("pattern", "0:0"))
        command = [given.peer, "-c", PEER, str(folder), str(fields.get("sparsity", 0.5)), structure]
        command.append(given.peer_dtype)
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder)
        seconds, busy, peak = json.loads(done.stdout.split("DONE")[-1])
        pruned = crepe.load(str(folder / "pruned"), dtype="bfloat16", device=given.device)[0]
        line = {"case": name, "seconds": seconds, "processor": busy, "peak": peak, "date": time.strftime("%Y-%m-%d")}
        line["threads"] = torch.get_num_threads()
        lines.add(line | _machine(given) | _evaluate(pruned, tokenizer, given))
        print(name, f"{lines.found[name]['perplexity']:.2f}", f"{seconds:.0f} s", flush=True)


def report(given: argparse.Namespace) -> None:
    lines = Lines(given.folder)
    print(f"Dense: {lines.found['dense']['perplexity']:.2f}, on the manual {lines.found['dense']['other']:.2f}.\n")
    for label in PATTERNS:
        names = [name for name in cases() if name.startswith(f"{label}/")]
        names += [f"{label}/{name}" for name in PEERS.values()]
        print(f"### {label}\n\n| case | perplexity | manual | KL | seconds | processor seconds | peak memory | on |")
        print("|---|---|---|---|---|---|---|---|")
        for name in (name for name in names if name in lines.found):
            print(f"| {name.split('/')[1]} |", " | ".join(_cells(lines.found[name])), "|")
        for name in (name for name in lines.found if name.startswith(f"{label}/") and " seed " in name):
            print(f"| {name.split('/')[1]} |", " | ".join(_cells(lines.found[name])), "|")
        missing = [name.split("/")[1] for name in names if name not in lines.found]
        print(f"\nNot measured: {', '.join(missing) or 'nothing'}.\n")
        _figure(lines, label, given.folder)


def _cells(line: dict[str, Any]) -> list[str]:
    numbers = [f"{line['perplexity']:.2f}", f"{line['other']:.2f}", f"{line['kl']:.3f}"]
    processor = f"{line['processor']:.0f}" if "processor" in line else "not taken"
    where = line.get("machine", "CPU").removeprefix("NVIDIA ")
    return [*numbers, f"{line['seconds']:.0f}", processor, f"{line['peak'] / 1e9:.2f} GB", where]


def _figure(lines: Lines, label: str, folder: Path) -> None:
    """Perplexity of every measured case as bars, best last."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    names = [name for name in lines.found if name.startswith(f"{label}/") and " seed " not in name]
    found = {name.split("/")[1]: lines.found[name]["perplexity"] for name in names}
    if not found:
        return
    ordered = sorted(found, key=lambda name: -found[name])
    figure = Figure(figsize=(7, 0.28 * len(ordered) + 0.8), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(ordered, [math.log(found[name]) for name in ordered], color="#b5651d")
    axes.bar_label(axes.containers[0], [f"{found[name]:.1f}" for name in ordered], fontsize=8, padding=2)
    axes.axvline(math.log(lines.found["dense"]["perplexity"]), color="#444", linewidth=1, linestyle=":")
    axes.set_xlabel("log perplexity; dotted: dense")
    axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasSVG(figure)
    name = label.replace("%", "").replace(":", "-")
    with rc_context({"svg.hashsalt": "crepe"}):  # equal numbers, equal bytes
        figure.savefig(folder / f"quality-{name}.svg", format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=["run", "peer", "report"])
    parser.add_argument("--model", default="llama")
    parser.add_argument("--calibration")
    parser.add_argument("--test")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cases", default="*")
    parser.add_argument("--peer")
    parser.add_argument("--peer-dtype", choices=list(PEERS), default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--hours", type=float, default=math.inf)
    parser.add_argument("--one")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.one:
        print(json.dumps(one(given)))
    else:
        {"run": run, "peer": peer, "report": report}[given.stage](given)


if __name__ == "__main__":
    main()
