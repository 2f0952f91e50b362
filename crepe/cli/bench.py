"""crepe bench"""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "bench",
        help="measured speed, memory and size of a model or of the kernels",
        description="Measure how fast a model reads and writes tokens, beside its dense form in the same run.",
        epilog="example: crepe bench llama-2of4-packed",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("model", nargs="?", metavar="M", help="output folder, Hub id, .gguf file or alias")
    parser.add_argument(
        "--reference", metavar="M", help="what to compare with; a packed model's dense form unless said"
    )
    parser.add_argument("--batch", type=_numbers, metavar="N,...", help="prompts at once (default 1,4,16)")
    parser.add_argument("--prompt", type=int, metavar="L", help="tokens of a prompt (default 512)")
    parser.add_argument("--new-tokens", type=int, metavar="N", help="tokens decoded after it (default 32)")
    parser.add_argument("--rounds", type=int, metavar="N", help="measurements of each (default 5)")
    parser.add_argument("--dtype", metavar="T", help="auto (default), bfloat16, float16, float32")
    parser.add_argument("--device", metavar="D", help="auto (default), cpu, cuda, ...")
    parser.add_argument("--trust-remote-code", action="store_true", help="allow code from the model's repository")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def run(arguments: argparse.Namespace) -> None:
    from crepe.cli.output import emit
    from crepe.errors import UsageError
    from crepe.eval.bench import bench

    given = {key: value for key, value in vars(arguments).items() if key not in ("run", "verb", "json")}
    if "model" not in given:
        raise UsageError("nothing to measure: give a model, such as crepe bench llama-2of4-packed")
    result = bench(given.pop("model"), **given)
    emit("json" in arguments, result, _lines(result))


def _lines(result: dict[str, Any]) -> list[str]:
    from crepe.cli.output import megabytes, table

    times = {(found["what"], found["batch"]): f"{found['times_faster']:.2f}x" for found in result["ratios"]}
    rows = [("tokens per second", "batch", "model", "median", "slowest", "fastest", "against the reference")]
    for found in result["runs"]:
        rate = [f"{found['tokens_per_second'][key]:.1f}" for key in ("median", "low", "high")]
        against = times.get((found["what"], found["batch"]), "") if found["model"] == "model" else ""
        rows.append((found["what"], str(found["batch"]), found["model"], *rate, against))
    lines = table(rows)
    for role, about in result["models"].items():
        size = "no files" if about["file_bytes"] is None else f"files {megabytes(about['file_bytes'])}"
        lines.append(f"{role}: {about['name']}, {size}, in memory {megabytes(about['memory_bytes'])}")
    lines.append("on " + ", ".join(f"{key} {value}" for key, value in result["machine"].items()))
    return lines + [f"not measured: {note}" for note in result["not_measured"]]
