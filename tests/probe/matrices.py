"""What the probe of the tensor cores is fed: matrices, laid out in the registers of warps, and rows for their loads.

How lanes hold a matrix is said in csrc/device/matrix.h; the tests hold this file and the host bodies to CuTe's algebra.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .inputs import THREADS, WARP, Case, Source, as_bytes, floats_of, special_bits

# Depths of a product, and float32's exponents between which inputs of any size have their exact products.
DEPTHS = {"float": 8, "float16": 16, "bfloat16": 16}
EXPONENTS = {"float": 20, "float16": 8, "bfloat16": 20}
ROWS, COLUMNS = 16, 8
_TF32 = np.uint32(0xFFFFE000)


@dataclass(frozen=True)
class Layout:
    """Which element each lane holds where; arrays of [WARP, registers, elements in a register]."""

    a_row: np.ndarray
    a_depth: np.ndarray
    b_depth: np.ndarray
    b_column: np.ndarray
    sum_row: np.ndarray  # one element in a register
    sum_column: np.ndarray


def layout(dtype: str) -> Layout:
    """As PTX's manual has it for mma.m16n8k8 and .m16n8k16."""
    each = DEPTHS[dtype] // 8
    lane = np.arange(WARP)[:, None, None]
    group, place = lane // 4, lane % 4
    four, two, part = np.arange(4)[:, None], np.arange(2)[:, None], np.arange(each)
    shape_a, shape_b, shape_sum = (WARP, 4, each), (WARP, 2, each), (WARP, 4, 1)
    return Layout(
        np.broadcast_to(group + four % 2 * 8, shape_a),
        np.broadcast_to((place + four // 2 * 4) * each + part, shape_a),
        np.broadcast_to((place + two * 4) * each + part, shape_b),
        np.broadcast_to(group, shape_b),
        np.broadcast_to(group + four // 2 * 8, shape_sum),
        np.broadcast_to(place * 2 + four % 2, shape_sum),
    )


def pack(at: Layout, a: np.ndarray, b: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Bits of [warps, ROWS, depth], [warps, depth, COLUMNS] and [warps, ROWS, COLUMNS] as the probe's items."""
    parts = a[:, at.a_row, at.a_depth], b[:, at.b_depth, at.b_column], before[:, at.sum_row, at.sum_column]
    words = [np.ascontiguousarray(part).view(np.uint32).reshape(len(a), WARP, -1) for part in parts]
    return as_bytes(np.concatenate(words, 2).reshape(len(a) * WARP, -1))


def unpack(at: Layout, sums: np.ndarray) -> np.ndarray:
    """Results of the probe, [items, bytes], as [warps, ROWS, COLUMNS] of float32."""
    lanes = np.ascontiguousarray(sums).view(np.float32).reshape(-1, WARP, 4, 1)
    result = np.empty((len(lanes), ROWS, COLUMNS), np.float32)
    result[:, at.sum_row, at.sum_column] = lanes
    return result


def values(bits: np.ndarray, dtype: str) -> np.ndarray:
    """What a product takes the bits for, in float64."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return floats_of(bits & _TF32 if dtype == "float" else bits, dtype).astype(np.float64)


def terms(a: np.ndarray, b: np.ndarray, before: np.ndarray) -> np.ndarray:
    """All that is summed, exactly, from values: [warps, ROWS, COLUMNS, depth + 1]."""
    with np.errstate(invalid="ignore"):
        products = a[:, :, None, :] * b.swapaxes(1, 2)[:, None]
    return np.concatenate([before[..., None], products], 3)


def truncate(sums: np.ndarray) -> np.ndarray:
    """float64 to float32, towards zero."""
    with np.errstate(over="ignore"):
        nearest = sums.astype(np.float32)
    return np.where(np.abs(nearest.astype(np.float64)) > np.abs(sums), np.nextafter(nearest, np.float32(0)), nearest)


def bound(summed: np.ndarray) -> np.ndarray:
    """How far apart two results may lie if both drop bits while they sum.

    The hardware aligns the terms of a step to the largest of them and drops what lies below float32's last bit there,
    or a few bits further down; then it drops bits of the sum. There are 17 terms, and at most four steps, each of
    which has what the last left as one more term and its sum to cut. That makes 24 times a last bit, of at most the sum
    of all magnitudes. The host body drops bits once.
    """
    with np.errstate(invalid="ignore"):
        magnitude = np.abs(summed).sum(-1)
    return np.nan_to_num((24 + 1) * (2.0**-23 * magnitude + 2.0**-149), posinf=0)


@dataclass(frozen=True)
class Operands:
    """Bits of some products of one kind.

    Attributes:
        a: [warps, ROWS, depth].
        b: [warps, depth, COLUMNS].
        before: float32, [warps, ROWS, COLUMNS].
        exact: whether every way to sum them gives the same.
    """

    a: np.ndarray
    b: np.ndarray
    before: np.ndarray
    exact: bool = False


def operands(seed: int, dtype: str) -> list[Operands]:
    """Integers, numbers of many sizes, sums that cancel, subnormal numbers, what is not finite."""
    source = Source(seed, f"multiply_matrices<{dtype}>")
    depth = DEPTHS[dtype]

    def of(make: Callable[..., np.ndarray], warps: int) -> tuple[np.ndarray, np.ndarray]:
        return make(warps, ROWS, depth), make(warps, depth, COLUMNS)

    def sized(dtype: str, low: int, high: int, *shape: int) -> np.ndarray:
        """Random fractions and signs, exponents from low to high."""
        fraction_bits, bias = {"float": (23, 127), "float16": (10, 15), "bfloat16": (7, 127)}[dtype]
        word = special_bits(dtype).dtype.type
        bits = source.words(word, *shape)
        exponent = source.words(np.uint32, *shape) % np.uint32(high - low + 1) + np.uint32(low + bias)
        rest = word((1 << fraction_bits) - 1 | 1 << (8 * np.dtype(word).itemsize - 1))
        return (bits & rest) | (exponent.astype(word) << word(fraction_bits))

    def integers(*shape: int) -> np.ndarray:
        return narrowed((source.words(np.uint32, *shape) % np.uint32(129)).astype(np.float32) - 64, dtype)

    def specials(*shape: int) -> np.ndarray:
        special, ordinary = special_bits(dtype), sized(dtype, -2, 2, *shape)
        # Of subnormal numbers and the ends of the range there is enough elsewhere. Nobody says what a NaN is whose bits
        # are all below TF32's last.
        wide, kept = floats_of(special, dtype), values(special, dtype)
        special = special[(wide == 0) | (~np.isfinite(wide) & (np.isnan(wide) == np.isnan(kept)))]
        chosen = source.words(np.uint32, *shape)
        return np.where(chosen % 16 == 0, special[chosen // 16 % len(special)], ordinary).astype(special.dtype)

    def zeros(warps: int) -> np.ndarray:
        return np.zeros((warps, ROWS, COLUMNS), np.float32)

    reach = EXPONENTS[dtype]
    found = []
    a, b = of(integers, 4)
    before = (source.words(np.uint32, 4, ROWS, COLUMNS) % np.uint32(2001)).astype(np.float32) - 1000
    found.append(Operands(a, b, before, exact=True))
    a, b = of(lambda *shape: sized(dtype, -reach, reach, *shape), 8)
    found.append(Operands(a, b, sized("float", -reach, reach, 8, ROWS, COLUMNS).view(np.float32)))
    a, b = of(lambda *shape: sized(dtype, -1, 1, *shape), 8)
    found.append(Operands(a, b, zeros(8)))
    # What was there takes nearly all of the products away, and what is left is what they drop.
    a, b = of(lambda *shape: sized(dtype, -1, 1, *shape), 8)
    sums = terms(values(a, dtype), values(b, dtype), zeros(8)).sum(-1)
    found.append(Operands(a, b, (-sums).astype(np.float32)))
    # The inputs are subnormal on one side; then the products are, of the types that reach so far.
    word = special_bits(dtype).dtype.type
    fraction = word((1 << {"float": 23, "float16": 10, "bfloat16": 7}[dtype]) - 1)
    sign = word(1 << (8 * np.dtype(word).itemsize - 1))
    a = source.words(word, 4, ROWS, depth) & (fraction | sign)
    found.append(Operands(a, sized(dtype, 0, 10, 4, depth, COLUMNS), zeros(4)))
    if dtype != "float16":
        a, b = of(lambda *shape: sized(dtype, -75, -66, *shape), 4)
        tiny = source.words(np.uint32, 4, ROWS, COLUMNS) & np.uint32(0x807FFFFF)
        found.append(Operands(a, b, tiny.view(np.float32)))
    a, b = of(specials, 4)
    found.append(Operands(a, b, zeros(4)))
    a, b = of(integers, 4)
    before = zeros(4)
    some = before.reshape(-1)[::7]
    some[:] = np.resize(np.array([np.inf, -np.inf, np.nan, -0.0], np.float32), len(some))
    found.append(Operands(a, b, before, exact=True))
    return found


def narrowed(x: np.ndarray, dtype: str) -> np.ndarray:
    """Bits of numbers that the dtype has."""
    if dtype == "bfloat16":
        return torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    return x.view(np.uint32) if dtype == "float" else x.astype(np.float16).view(np.uint16)


def _multiply(seed: int, dtype: str) -> Case:
    at, parts = layout(dtype), operands(seed, dtype)
    items = np.concatenate([pack(at, part.a, part.b, part.before) for part in parts])
    assert len(items) % THREADS == 0

    def summed(part: Operands) -> np.ndarray:
        return terms(values(part.a, dtype), values(part.b, dtype), part.before.astype(np.float64))

    def lanes(sums: np.ndarray) -> np.ndarray:
        return sums[:, at.sum_row, at.sum_column].reshape(-1, 4)

    def truth() -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return as_bytes(np.concatenate([lanes(truncate(summed(part).sum(-1))) for part in parts]))

    def bounds() -> np.ndarray:
        each = [bound(summed(part)) * (not part.exact) for part in parts]
        return np.concatenate([lanes(one) for one in each])

    return Case(f"multiply_matrices<{dtype}>", items, truth, "float", bounds)


def _load(seed: int) -> Case:
    source = Source(seed, "load_matrices")
    blocks = 6
    words = source.words(np.uint32, blocks, THREADS, 4)
    rows = source.words(np.uint32, blocks, THREADS) % np.uint32(THREADS)
    rows[0] = np.arange(THREADS)
    rows[1] = rows[1, 0]  # one for all
    items = np.concatenate([words, rows[..., None]], 2).reshape(blocks * THREADS, -1)

    def truth() -> np.ndarray:
        lane = np.arange(THREADS)
        giver = lane[:, None] // WARP * WARP + 8 * np.arange(4) + lane[:, None] % WARP // 4
        block = np.arange(blocks)[:, None, None]
        result = words[block, rows[:, giver], np.broadcast_to(lane[:, None] % 4, giver.shape)]
        return as_bytes(result.reshape(blocks * THREADS, 4))

    return Case("load_matrices", as_bytes(items), truth)


def _round_tf32(seed: int, name: str) -> Case:
    source = Source(seed, name)
    some = np.concatenate([special_bits("float"), source.words(np.uint32, 2048)])
    # Ties and what lies just beside them, of any size; then of subnormal numbers.
    ties = (source.words(np.uint32, 512) & _TF32) | np.uint32(0x1000)
    tiny = source.words(np.uint32, 256) & np.uint32(0x807FFFFF)
    largest = np.array([0x7F7FEFFF, 0x7F7FF000, 0x7F7FFFFF, 0x1000, 0xFFF], np.uint32)
    edges = [ties, ties - np.uint32(1), ties + np.uint32(1), tiny, largest, largest | np.uint32(1 << 31)]
    bits = np.concatenate([some, *edges])
    bits = np.resize(bits, -(-len(bits) // THREADS) * THREADS)

    def truth() -> np.ndarray:
        x = bits.view(np.float32)
        # In float64 a sum with half of TF32's last bit is exact, and so is what cuts it.
        with np.errstate(invalid="ignore", over="ignore"):
            wide = np.abs(x).astype(np.float64)
            exponent = np.maximum(np.frexp(wide)[1] - 1, -126)
            last = np.ldexp(1.0, exponent - 10)
            rounded = np.where(np.isfinite(x), np.floor(wide / last + 0.5) * last, wide).astype(np.float32)
        return as_bytes(np.where(np.isnan(x), x, np.copysign(rounded, x)))

    return Case(name, as_bytes(bits), truth, "float")


def make(seed: int) -> Sequence[Case]:
    """The cases of matrix.cu."""
    rounds = [_round_tf32(seed, f"round_tf32<{kind}>") for kind in ("float", "uint32_t")]
    return [_load(seed), *(_multiply(seed, dtype) for dtype in DEPTHS), *rounds]
