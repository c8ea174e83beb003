"""Reads disassembled kernels: which instructions they have, and which of them stand in which loop."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# Instructions that occupy the same part of the hardware, as far as a mix tells anything by it.
PIPES = ("fp32", "tensor", "fp64", "integer", "convert", "shared", "global", "local", "control", "other")

_PIPE_OF = {
    "fp32": "FFMA FFMA2 FMUL FMUL2 FADD FADD2 FSETP FSET FSEL FMNMX FMNMX3 FCHK FSWZADD FFMA32I FADD32I FMUL32I",
    "tensor": "HMMA IMMA BMMA DMMA QMMA OMMA HGMMA IGMMA QGMMA BGMMA UTCHMMA UTCQMMA",
    "fp64": "DFMA DADD DMUL DSETP DMNMX",
    "convert": "F2F F2I I2F F2FP I2FP I2I FRND MUFU HADD2 HMUL2 HFMA2 HSETP2 HSET2 HMNMX2",
    "shared": "LDS LDSM STS STSM ATOMS",
    "global": "LDG STG LDGSTS LD ST RED ATOM ATOMG UBLKCP UTMALDG UTMASTG UTMAPF CCTL REDG",
    "local": "LDL STL",
    "control": "BRA BRX JMP JMX CALL RET EXIT BSSY BSYNC BREAK BMOV BAR NOP WARPSYNC YIELD DEPBAR LDGDEPBAR ERRBAR "
    "MEMBAR FENCE SYNCS WARPGROUP KILL NANOSLEEP VOTE ELECT ACQBULK ARRIVES CCTLT PREEXIT RPCMOV USETMAXREG",
    "integer": "IADD IADD3 IADD32I IMAD IMAD32I IMUL IABS IMNMX ISETP ISCADD IDP IDP4A LEA LOP LOP3 LOP32I PLOP3 SHF "
    "SHL SHR POPC FLO BREV BMSK SGXT PRMT SEL MOV MOV32I P2R R2P S2R CS2R SHFL LDC LEPC VIADD VIADDMNMX VIMNMX "
    "VABSDIFF R2UR S2UR MATCH REDUX I2IP GETLMEMBASE VOTEU",
}
_PIPES = {opcode: pipe for pipe, opcodes in _PIPE_OF.items() for opcode in opcodes.split()}

_LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)((?:\.[A-Za-z0-9_]+)*)\s*([^;]*);")
_LABEL = re.compile(r"^(\.L_\w+|[$\w.]+):\s*$")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_MATRIX = re.compile(r"\.(?P<m>16)(?P<n>8)(?P<k>4|8|16|32|64)(?:\.|$)|\.(?P<M>\d+)x(?P<N>\d+)x(?P<K>\d+)")
_WARPS_OF_A_GROUP = 4  # which share an instruction of the second form


class SassError(ValueError):
    """No disassembly, or not of the kernel that was asked for."""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        opcode: without modifiers.
        modifiers: with their dots.
        conditional: whether some threads, or a branch, may pass it by.
        target: label that it branches to.
    """

    opcode: str
    modifiers: str = ""
    conditional: bool = False
    target: str | None = None

    @property
    def name(self) -> str:
        return self.opcode + self.modifiers

    @property
    def pipe(self) -> str:
        """Of PIPES; an unknown uniform instruction is an integer one, as nearly all of those are."""
        found = _PIPES.get(self.opcode)
        return found or ("integer" if self.opcode.startswith("U") else "other")

    @property
    def matrix_multiply_adds(self) -> int:
        """Of a warp, for a tensor core's instruction whose shape its name tells; else 0."""
        match = _MATRIX.search(self.modifiers) if self.pipe == "tensor" else None
        if match is None:
            return 0
        if match["m"]:
            return int(match["m"]) * int(match["n"]) * int(match["k"])
        return int(match["M"]) * int(match["N"]) * int(match["K"]) // _WARPS_OF_A_GROUP


@dataclass(frozen=True)
class Loop:
    """A natural loop.

    Attributes:
        first: number of the instruction that it begins with.
        always: its instructions that every time around meets.
        sometimes: its other instructions, by basic blocks. Neither has those of loops in it.
    """

    first: int
    always: tuple[Instruction, ...]
    sometimes: tuple[tuple[Instruction, ...], ...] = ()

    @property
    def own(self) -> tuple[Instruction, ...]:
        """Its instructions, without those of loops in it."""
        return self.always + tuple(x for block in self.sometimes for x in block)

    @property
    def sometimes_fused(self) -> tuple[Instruction, ...]:
        """Those of the other blocks that have multiply-adds."""
        return tuple(x for block in self.sometimes if fused(block) for x in block)


@dataclass(frozen=True)
class Program:
    """A disassembled kernel, with what it calls."""

    symbol: str
    instructions: tuple[Instruction, ...]
    loops: tuple[Loop, ...]


def mix(instructions: Sequence[Instruction]) -> Counter[str]:
    """How many instructions each pipe gets."""
    return Counter(instruction.pipe for instruction in instructions)


def fused(instructions: Sequence[Instruction]) -> int:
    """How many multiply-adds in float32 a thread makes."""
    return sum(instruction.opcode == "FFMA" for instruction in instructions)


def matrix(instructions: Sequence[Instruction]) -> int:
    """How many multiply-adds of tensor cores a warp makes."""
    return sum(instruction.matrix_multiply_adds for instruction in instructions)


def main_loop(program: Program, wide: bool = False) -> Loop | None:
    """The loop with the most tensor core instructions outside of loops in it, or else the most FFMA.

    Args:
        program: a kernel.
        wide: of those loops only that load and store global memory, and 16 bytes at a time only.

    Returns:
        None if no loop has any of either.
    """
    fitting = [loop for loop in program.loops if (mix(loop.own)["tensor"] or fused(loop.own))]
    if wide:
        fitting = [loop for loop in fitting if _is_wide(loop)]
    return max(fitting, key=lambda loop: (mix(loop.own)["tensor"], fused(loop.own)), default=None)


def _is_wide(loop: Loop) -> bool:
    accesses = [x for x in loop.own if x.pipe == "global"]
    return {"LDG", "STG"} <= {x.opcode for x in accesses} and all(".128" in x.modifiers for x in accesses)


def parse(text: str) -> list[Program]:
    """Reads the output of ``nvdisasm -c``.

    Raises:
        SassError: there is no kernel in it.
    """
    programs = []
    for section in re.split(r"^\s*\.section\s+", text, flags=re.MULTILINE)[1:]:
        if not (match := re.match(r"\.text\.([^,\s]+)", section)):
            continue
        instructions, labels = _read(section)
        programs.append(Program(match[1], tuple(instructions), tuple(_loops(instructions, labels))))
    if not programs:
        raise SassError(f"disassembly: expected sections .text.<kernel>, got {text[:60]!r}")
    return programs


def find(programs: Sequence[Program], symbol: str) -> Program:
    """The one kernel whose symbol matches.

    Raises:
        SassError: none does, or several do.
    """
    found = [program for program in programs if re.search(symbol, program.symbol)]
    if len(found) != 1:
        got = ", ".join(program.symbol for program in found or programs)
        raise SassError(f"disassembly: expected one kernel that matches {symbol!r}, got {got}")
    return found[0]


def _read(section: str) -> tuple[list[Instruction], dict[str, int]]:
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in section.splitlines():
        if label := _LABEL.match(line.strip()):
            labels[label[1]] = len(instructions)
        elif match := _LINE.search(line):
            predicate, opcode, modifiers, operands = match.groups()
            target = _TARGET.search(operands)
            # A branch may have its condition, or a second one, among its operands.
            among = target is not None and re.match(r"!?U?P[\dT]", operands) is not None
            instructions.append(Instruction(opcode, modifiers, bool(predicate) or among, target[1] if target else None))
    return instructions, labels


_JUMPS = ("BRA", "CALL", "JMP")
_ENDS = ("EXIT", "RET", "BRX", "JMX", "KILL")


def _blocks(instructions: Sequence[Instruction], labels: dict[str, int]) -> tuple[list[int], list[list[int]]]:
    """Beginnings of the basic blocks, and which blocks each goes on to."""
    begins = {0, *labels.values()}
    begins |= {i + 1 for i, x in enumerate(instructions) if x.opcode in (*_JUMPS, *_ENDS)}
    starts = sorted(begin for begin in begins if begin < len(instructions))
    number = {start: i for i, start in enumerate(starts)}
    successors: list[list[int]] = []
    for i in range(len(starts)):
        end = starts[i + 1] if i + 1 < len(starts) else len(instructions)
        last = instructions[end - 1]
        # A call of a label within the kernel never returns; of anything else it does.
        jumps = last.opcode in _JUMPS and last.target is not None
        following = [labels[last.target]] if jumps and last.target in labels else []
        leaves = last.opcode in _ENDS or jumps
        if end < len(instructions) and (last.conditional or not leaves):
            following.append(end)
        successors.append([number[start] for start in following if start in number])
    return starts, successors


def _reached(successors: Sequence[Sequence[int]]) -> list[int]:
    """Blocks that there is a way to, the first one first."""
    found, pending = {0}, [0]
    while pending:
        new = set(successors[pending.pop()]) - found
        found |= new
        pending += new
    return sorted(found)


def _dominators(successors: Sequence[Sequence[int]]) -> dict[int, int]:
    """For each block that there is a way to, the set, as bits, of blocks through which every way leads."""
    blocks = _reached(successors)
    everything = (1 << len(successors)) - 1
    found = dict.fromkeys(blocks, everything) | {0: 1}
    before: dict[int, list[int]] = {block: [] for block in blocks}
    for block in blocks:
        for target in successors[block]:
            before[target].append(block)
    changed = True
    while changed:
        changed = False
        for block in blocks[1:]:
            common = everything
            for source in before[block]:
                common &= found[source]
            if (new := common | 1 << block) != found[block]:
                found[block], changed = new, True
    return found


def _loops(instructions: Sequence[Instruction], labels: dict[str, int]) -> list[Loop]:
    starts, successors = _blocks(instructions, labels)
    dominators = _dominators(successors) if starts else {}
    bodies: dict[int, set[int]] = {}
    passed: dict[int, int] = {}  # by header, the blocks through which every way back leads
    for block, dominating in dominators.items():
        for header in successors[block]:
            if dominating >> header & 1:  # a way back
                bodies.setdefault(header, {header}).update(_reaching(block, header, successors))
                passed[header] = passed.get(header, dominating) & dominating
    ends = [*starts[1:], len(instructions)]
    loops = []
    for header, body in sorted(bodies.items()):
        nested = [other for h, other in bodies.items() if h != header and other < body]
        always: list[Instruction] = []
        sometimes: list[tuple[Instruction, ...]] = []
        for block in sorted(body.difference(*nested)):
            content = instructions[starts[block] : ends[block]]
            if passed[header] >> block & 1:
                always += content
            else:
                sometimes.append(tuple(content))
        loops.append(Loop(starts[header], tuple(always), tuple(sometimes)))
    return loops


def _reaching(block: int, header: int, successors: Sequence[Sequence[int]]) -> set[int]:
    """Blocks from which there is a way to a block that does not lead through the header."""
    found, pending = {header}, [block]
    while pending:
        current = pending.pop()
        if current in found:
            continue
        found.add(current)
        pending += [source for source, following in enumerate(successors) if current in following]
    return found
