"""Compile a kernel without a GPU and read what became of it: machine code for one architecture, counted."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TARGET = 90
_INSTRUCTION = re.compile(r"/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<text>[^;]+);")
_BRANCH = re.compile(r"^(?:@!?U?P\w+\s+)?BRA\S*\s+(?:\S+,\s*)*`?\(?\s*(?P<target>0x[0-9a-f]+|\.L\w+)")


@dataclass(frozen=True)
class Compiled:
    """ttgir: Triton's own last form. instructions: (address, text) of the machine code in order. shared: bytes."""

    ttgir: str
    shared: int
    instructions: tuple[tuple[int, str], ...]

    def loop(self) -> tuple[str, ...]:
        """The instructions of the largest loop, all of them where there is none."""
        addresses = [address for address, _ in self.instructions]
        spans = []
        for address, text in self.instructions:
            found = _BRANCH.match(text)
            target = int(found["target"], 16) if found and found["target"].startswith("0x") else address
            if target < address:
                spans.append((addresses.index(target), addresses.index(address) + 1))
        start, end = max(spans, key=lambda span: span[1] - span[0], default=(0, len(addresses)))
        return tuple(text for _, text in self.instructions[start:end])

    def conversions_in_loop(self) -> int:
        """Changes of layout in the innermost `scf.for` of the ttgir."""
        start = self.ttgir.rfind("scf.for")
        return self.ttgir[max(start, 0) : self.ttgir.find("scf.yield", start)].count("ttg.convert_layout")


def count(instructions: tuple[str, ...]) -> Counter[str]:
    """How often each opcode occurs, predicates left away: `LDG.E.128` and so on."""
    return Counter(re.sub(r"^@!?U?P\w+\s+", "", text).split()[0] for text in instructions)


def compile_kernel(kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int, stages: int) -> Compiled:
    """types: argument name -> Triton type such as `*i32`; all of them divisible by 16, as torch allocates."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (position,): [["tt.divisibility", 16]] for position, name in enumerate(kernel.arg_names) if name in types
    }
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(k),): v for k, v in constants.items()}, aligned)
    built = triton.compile(source, GPUTarget("cuda", TARGET, 32), {"num_warps": warps, "num_stages": stages})
    return Compiled(built.asm["ttgir"], built.metadata.shared, _disassemble(built.asm["cubin"]))


def _disassemble(binary: bytes) -> tuple[tuple[int, str], ...]:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip(f"this triton carries no {tool.name}")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        text = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    found = ((int(match["address"], 16), match["text"].strip()) for match in _INSTRUCTION.finditer(text))
    return tuple((address, text) for address, text in found if text != "NOP")
