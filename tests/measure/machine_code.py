"""Instructions in the hot loop of each product kernel, compiled for sm_90a: no GPU needed.

PYTHONPATH=tests python tests/measure/machine_code.py
"""

from __future__ import annotations

from typing import Any

import torch

from sass import Compiled, compile_kernel, groups_of_products, starting

LANES = 32
OFF = {"HAS_BIAS": False, "INTERPRETED": False}


def _row(what: str, shape: tuple[int, int, int], compiled: Compiled, groups: float) -> str:
    loop, opcodes = compiled.loop(), compiled.opcodes()
    spills = starting(opcodes, "LDL", "STL")
    return (
        f"| {what} | {' x '.join(map(str, shape))} | {sum(loop.values()) / groups:.1f} | {compiled.conversions()} | "
        f"{spills} | {compiled.shared / 1024:.0f} KB |"
    )


def sparse_matvec(shape: tuple[int, int, int]) -> str:
    from crepe.kernels.triton import sp24_matvec as kernel

    constants, config, _ = kernel.plan(shape, torch.bfloat16)
    types = {"out": "*bf16", "x": "*i64", "values": "*i32", "meta": "*i32", "bias": "*bf16"}
    compiled = compile_kernel(kernel.matvec_kernel, types, {**constants, **OFF}, config)
    return _row("2:4 matrix-vector", shape, compiled, constants["ROWS"] * constants["WORDS"] * 8 / LANES)


def sparse_matmul(shape: tuple[int, int, int]) -> str:
    from crepe.kernels.triton import sp24_matmul as kernel

    constants, config, _ = kernel.plan(shape, torch.bfloat16)
    types = {"out": "*bf16", "x": "*bf16", "values": "*i32", "meta": "*i32", "bias": "*bf16", "tokens": "i32"}
    compiled = compile_kernel(kernel.matmul_kernel, types, {**constants, **OFF}, config)
    groups = constants["BN"] * constants["WORDS"] * 8 / LANES / config.warps
    return _row("2:4 small batch", shape, compiled, groups)


def sparse_mma(shape: tuple[int, int, int]) -> str:
    from crepe.kernels.triton import sp24_mma as kernel

    constants, config, _ = kernel.plan(shape, torch.bfloat16)
    types = {"out": "*bf16", "x": "*i32", "values": "*i32", "meta": "*i32", "bias": "*bf16", "tokens": "i32"}
    compiled = compile_kernel(kernel.mma_kernel, types, {**constants, **OFF}, config)
    # Where all steps have been unrolled, what counts as the loop is all of them.
    groups = groups_of_products(compiled.loop(), constants["TOKENS"])
    return _row("2:4 sparse tensor cores", shape, compiled, groups)


def blocks_matvec(shape: tuple[int, int, int]) -> str:
    from crepe.kernels.triton import colblock_matvec as kernel

    constants, config, _ = kernel.plan(shape, shape[2] // 2, 64, 8, torch.bfloat16)
    types = {"out": "*bf16", "x": "*i32", "values": "*i32", "blocks": "*i32", "bias": "*bf16"}
    compiled = compile_kernel(kernel.matvec_kernel, types, {**constants, "HAS_BIAS": False}, config)
    fours = constants["ROWS"] * constants["PIECES"] * 2 / LANES / config.warps
    return _row("column blocks matrix-vector", shape, compiled, fours)


def main() -> None:
    rows: list[Any] = [sparse_matvec((tokens, 4096, inputs)) for tokens in (1, 2, 3) for inputs in (4096, 11008)]
    rows += [sparse_matvec((1, width, width)) for width in (576, 4544)]
    rows += [sparse_mma((tokens, outputs, 4096)) for tokens in (8, 16, 32) for outputs in (4096, 22016)]
    rows += [sparse_matmul(shape) for shape in ((33, 576, 576), (64, 4096, 4096), (64, 28672, 4096))]
    rows += [blocks_matvec((1, 4096, 16384))]
    print("| kernel | tokens x outputs x inputs | instructions for four weights | conversions | spills | shared |")
    print("|---|---|---|---|---|---|", *rows, sep="\n")


if __name__ == "__main__":
    main()
