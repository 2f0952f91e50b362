"""Compile a kernel without a GPU and read what became of it: its machine code, counted."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HOPPER = 90
_INSTRUCTION = re.compile(r"/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<text>[^;]+);")
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")
_BRANCH = re.compile(r"^BRA\b.*?(?P<target>0x[0-9a-f]+)")


# For modules whose budgets hold for the version that they were counted with.
counted = pytest.mark.skipif(
    bool(find_spec("triton")) and not version("triton").startswith("3.6."), reason="the budgets are those of triton 3.6"
)


@dataclass(frozen=True)
class Compiled:
    """ttgir: Triton's own last form. shared: bytes. instructions: (address, text) of the machine code in order."""

    ttgir: str
    shared: int
    instructions: tuple[tuple[int, str], ...]

    def opcodes(self) -> Counter[str]:
        return _count(self.instructions)

    def loop(self) -> Counter[str]:
        """How often each opcode stands in the longest loop, in the whole kernel where there is none."""
        addresses = [address for address, _ in self.instructions]
        spans = [(0, 0)]
        for position, (address, text) in enumerate(self.instructions):
            found = _BRANCH.match(text)
            if found and int(found["target"], 16) < address:
                spans.append((addresses.index(int(found["target"], 16)), position + 1))
        start, end = max(spans, key=lambda span: span[1] - span[0])
        return _count(self.instructions[start:end] if end else self.instructions)

    def conversions(self) -> int:
        """Changes of layout in the innermost loop of the ttgir, or in all of it where there is no loop."""
        start = max(self.ttgir.rfind("scf.for"), 0)
        end = self.ttgir.find("scf.yield", start)
        return self.ttgir[start : end if end > 0 else None].count("ttg.convert_layout")


def compile_kernel(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    config: Any,
    architecture: int = HOPPER,
    even: str = "",
) -> Compiled:
    """types: argument name -> Triton type such as `*i32`; pointers are divisible by 16, as torch allocates them, and so
    is the number `even`.
    config: the options of the compiler."""
    if not hasattr(kernel, "arg_names") or not hasattr(kernel, "cache_key"):
        pytest.skip("triton is interpreting in this process")
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, type_ in types.items()
        if type_[0] == "*" or name == even
    }
    values = {(names.index(name),): value for name, value in constants.items()}
    built = compile(ASTSource(kernel, signature, values, aligned), GPUTarget("cuda", architecture, 32), config.options)
    return Compiled(built.asm["ttgir"], built.metadata.shared, _disassemble(built.asm["cubin"]))


def _disassemble(binary: bytes) -> tuple[tuple[int, str], ...]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip(f"this triton comes without {tool.name}")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        text = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    found = ((int(match["address"], 16), match["text"].strip()) for match in _INSTRUCTION.finditer(text))
    plain = [(address, _PREDICATE.sub("", text)) for address, text in found]
    return tuple((address, text) for address, text in plain if text != "NOP")


def _count(instructions: tuple[tuple[int, str], ...]) -> Counter[str]:
    return Counter(text.split()[0] for _, text in instructions)


def starting(opcodes: Counter[str], *prefixes: str) -> int:
    """How many of the instructions start with one of the prefixes."""
    return sum(number for opcode, number in opcodes.items() if opcode.startswith(prefixes))


def groups_of_products(opcodes: Counter[str], tiles: int) -> float:
    """Groups of four weights that a lane brings to the products among the instructions, of 16 rows and 8 groups each.
    tiles: of tokens, with each of which the same weights are multiplied."""
    return starting(opcodes, "HMMA.SP") * 16 * 8 / 32 / tiles
