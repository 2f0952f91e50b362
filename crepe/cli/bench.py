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
    parser.add_argument("--kernels", action="store_true", help="every operation over the shapes of real models")
    parser.add_argument("--only", type=_names, metavar="GLOB,...", help='with --kernels: "operation label tokens"')
    parser.add_argument(
        "--reference", metavar="M", help="what to compare with; a packed model's dense form unless said"
    )
    parser.add_argument("--batch", type=_numbers, metavar="N,...", help="prompts at once (default 1,4,16)")
    parser.add_argument("--prompt", type=int, metavar="L", help="tokens of a prompt (default 512)")
    parser.add_argument("--new-tokens", type=int, metavar="N", help="tokens decoded after it (default 32)")
    parser.add_argument("--rounds", type=int, metavar="N", help="measurements of each (default 5)")
    parser.add_argument("--compile", action="store_true", help="torch.compile fuses the decode step of both first")
    parser.add_argument("--dtype", metavar="T", help="auto (default), bfloat16, float16, float32")
    parser.add_argument("--device", metavar="D", help="auto (default), cpu, cuda, ...")
    parser.add_argument("--trust-remote-code", action="store_true", help="allow code from the model's repository")
    parser.add_argument("--output", metavar="DIR", help="write bench.json and a picture of it, bench.svg, there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,4, not {text!r}") from None


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def run(arguments: argparse.Namespace) -> None:
    from crepe.cli.output import emit
    from crepe.report.bench import require_new, write_bench

    given = {key: value for key, value in vars(arguments).items() if key not in ("run", "verb", "json", "output")}
    output = getattr(arguments, "output", None)
    if output is not None:
        require_new(output)
    result, lines = _measured_kernels(given) if given.pop("kernels", False) else _measured_model(given)
    if output is not None:
        lines += [f"written: {path}" for path in write_bench(output, result)]
    emit("json" in arguments, result, lines)


def _measured_model(given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    from crepe.errors import UsageError
    from crepe.eval.bench import bench

    if "only" in given:
        raise UsageError("--only chooses among the kernels: use it with --kernels")
    if "model" not in given:
        raise UsageError("nothing to measure: give a model, such as crepe bench llama-2of4-packed, or --kernels")
    result = bench(given.pop("model"), **given)
    return result, _lines(result)


def _measured_kernels(given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    from crepe.errors import UsageError
    from crepe.eval.bench_kernels import bench_kernels

    wrong = sorted(set(given) - {"only", "device"})
    if wrong:
        raise UsageError(f"{wrong[0].replace('_', '-')!r} does not go with --kernels: it takes --only and --device")
    result = bench_kernels(**given)
    return result, _kernel_lines(result)


def _kernel_lines(result: dict[str, Any]) -> list[str]:
    from crepe.cli.output import table

    rows = [("operation", "shape of", "tokens, outputs, inputs", "way", "us", "quartiles", "floor us", "times faster")]
    for case in result["cases"]:
        for name, way in case["ways"].items():
            times = ", ".join(f"{value:.2f}x {base}" for base, value in case["times_faster"].get(name, {}).items())
            shape = " x ".join(map(str, case["shape"]))
            quartiles = f"{way['us_low']:.1f} to {way['us_high']:.1f}"
            numbers = (f"{way['us']:.1f}", quartiles, f"{way['floor_us']:.1f}")
            rows.append((case["operation"], case["label"], shape, name, *numbers, times))
    lines = table(rows) if result["cases"] else []
    lines.append("on " + ", ".join(f"{key} {value}" for key, value in result["machine"].items()))
    return lines + [f"not measured: {note}" for note in result["not_measured"]]


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
    if result["compiled"]:
        lines.append("the decode step is fused by torch.compile")
    return lines + [f"not measured: {note}" for note in result["not_measured"]]
