"""What the probe is fed, and what must come of it by NumPy, by PyTorch and by exact rational arithmetic.

The truths share nothing with either body of a wrapper.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch

THREADS = 128  # of a block; as probe.h says
WARP = 32
TILES = 6
FILL = 0xA5  # the bytes of shared memory before a copy arrives

# Bits of each dtype as unsigned integers, exponent bits and fraction bits.
BITS = {
    "double": (np.uint64, 11, 52),
    "float": (np.uint32, 8, 23),
    "float16": (np.uint16, 5, 10),
    "bfloat16": (np.uint16, 8, 7),
}
WIDENED = {"double": "double", "float": "float", "float16": "float", "bfloat16": "float"}


@dataclass(frozen=True)
class Case:
    """One wrapper's data.

    Attributes:
        name: of the case in probe.cu or matrix.cu.
        input: [items, bytes of an item].
        truth: [items, bytes of an item], computed when it is asked for.
        floats: the dtype of the results if they are computed, so that NaNs may differ in their bits; "" if moved.
        bounds: how far each of an item's floats may be off, [items, floats]; not at all if None.
    """

    name: str
    input: np.ndarray = field(repr=False)
    truth: Callable[[], np.ndarray] = field(repr=False)
    floats: str = ""
    bounds: Callable[[], np.ndarray] | None = field(default=None, repr=False)


class Source:
    """Random bits that depend on the seed and the name alone, in any version of NumPy."""

    def __init__(self, seed: int, name: str) -> None:
        # Streams of bit generators are kept for good; those of Generator's methods are not.
        self._bits = np.random.PCG64([seed, zlib.crc32(name.encode())])

    def words(self, dtype: type, *shape: int) -> np.ndarray:
        raw = np.atleast_1d(self._bits.random_raw(math.prod(shape)))
        # From the top, where every generator is at its best.
        return (raw >> np.uint64(64 - 8 * np.dtype(dtype).itemsize)).astype(dtype).reshape(shape)


def make(seed: int) -> dict[str, Case]:
    """All cases by name; they run in this order."""
    from . import matrices  # which needs this file

    cases = [
        *_indices(seed),
        *(case for name in ("load", "store") for case in _moves(seed, name, vector=False)),
        *(case for name in ("load_vector", "read_vector", "store_vector") for case in _moves(seed, name, vector=True)),
        *_some_moves(seed),
        *(_widen(seed, dtype) for dtype in BITS),
        *(_narrow(seed, dtype) for dtype in BITS),
        *(case for dtype in ("float", "float16", "bfloat16") for case in _words(seed, dtype)),
        *(_multiply_add(seed, dtype) for dtype in ("double", "float")),
        *(_square_root(seed, dtype) for dtype in ("double", "float")),
        *(_copy(seed, size) for size in (4, 8, 16)),
        *_pipelines(seed),
        *matrices.make(seed),
    ]
    return {case.name: case for case in cases}


def digest(cases: dict[str, Case]) -> str:
    """SHA-256 of all inputs: results of other inputs cannot be compared."""
    sha = hashlib.sha256()
    for case in cases.values():
        sha.update(f"{case.name}\0{case.input.shape}\0".encode())
        sha.update(case.input.tobytes())
    return sha.hexdigest()


def as_bytes(items: np.ndarray) -> np.ndarray:
    """[items, …] of any dtype as [items, bytes]."""
    items = np.ascontiguousarray(items)
    return items.view(np.uint8).reshape(len(items), -1)


def floats_of(data: np.ndarray, dtype: str) -> np.ndarray:
    """Bytes of a floating-point dtype as floats that NumPy has; bfloat16 as float32."""
    bits = np.ascontiguousarray(data).view(BITS[dtype][0])
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view({"double": np.float64, "float": np.float32, "float16": np.float16}[dtype])


# --- threads, shared memory, launches ------------------------------------------------------------------


def _indices(seed: int) -> list[Case]:
    def words(name: str, blocks: int) -> np.ndarray:
        return Source(seed, name).words(np.uint32, blocks * THREADS)

    launched, indices, barrier, shared = words("launch", 20), words("index", 300), words("barrier", 20), words("s", 6)
    large = words("large", 3)
    number = np.arange(len(indices))
    table = np.arange(256, dtype=np.uint32) * np.uint32(2654435761)
    return [
        Case("launch", as_bytes(launched), lambda: as_bytes(launched ^ np.resize(table, len(launched)))),
        Case("thread_index", as_bytes(indices), lambda: as_bytes((number % THREADS).astype(np.int32))),
        Case("warp_index", as_bytes(indices), lambda: as_bytes((number % THREADS // WARP).astype(np.int32))),
        Case("lane_index", as_bytes(indices), lambda: as_bytes((number % WARP).astype(np.int32))),
        Case("converge_warp", as_bytes(barrier), lambda: as_bytes(_steps(barrier, np.arange(len(barrier)) % WARP))),
        Case("block_index", as_bytes(indices), lambda: as_bytes((number // THREADS).astype(np.uint32))),
        Case("block_barrier", as_bytes(barrier), lambda: as_bytes(_after_barriers(barrier.reshape(-1, THREADS)))),
        Case("shared_memory<48KiB>", as_bytes(shared), lambda: _shared_sums(shared, 48 * 1024)),
        Case("shared_memory<99KiB>", as_bytes(large), lambda: _shared_sums(large, 99 * 1024)),
    ]


def _steps(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """So many steps of a generator from each value on."""
    values = values.copy()
    for step in range(int(counts.max(initial=0))):
        further = counts > step
        values[further] = values[further] * np.uint32(1664525) + np.uint32(1013904223)
    return values


def _after_barriers(values: np.ndarray) -> np.ndarray:  # [blocks, THREADS]
    factor, term = 1, 0
    for _ in range(1000):  # as many steps as the late warp makes
        factor, term = factor * 1664525 % 2**32, (term * 1664525 + 1013904223) % 2**32
    threads = np.arange(THREADS)
    values = values.copy()
    for step in range(8):
        late = threads // WARP == step % (THREADS // WARP)
        values[:, late] = values[:, late] * np.uint32(factor) + np.uint32(term)
        values = values ^ values[:, (threads + WARP + step) % THREADS]
    return values.reshape(-1)


def _shared_sums(values: np.ndarray, size: int) -> np.ndarray:
    words = size // 4
    number = np.arange(1, words + 1, dtype=np.uint32).reshape(-1, THREADS)
    other = values.reshape(-1, THREADS)[:, ::-1]
    sums = (other * number[:, ::-1].sum(0, dtype=np.uint32)).reshape(-1)
    return as_bytes(np.stack([sums, np.zeros_like(sums)], 1))


# --- elements and vectors ------------------------------------------------------------------------------


def special_bits(dtype: str) -> np.ndarray:
    """Zeros, subnormals, what lies around 1 and the ends of the range, infinities, NaNs; of both signs."""
    word, exponent_bits, fraction_bits = BITS[dtype]
    one = ((1 << (exponent_bits - 1)) - 1) << fraction_bits
    infinity = ((1 << exponent_bits) - 1) << fraction_bits
    quiet = infinity | 1 << (fraction_bits - 1)
    least = 1 << fraction_bits
    positive = [0, 1, 2, least - 1, least, least + 1, one - 1, one, one + 1, one + (1 << fraction_bits)]
    positive += [infinity - 1, infinity, infinity + 1, quiet, quiet + 1, infinity | (least - 1)]
    sign = 1 << (exponent_bits + fraction_bits)
    return np.array([*positive, *(sign | bits for bits in positive)], dtype=word)


def _padded(values: np.ndarray, items: int = THREADS) -> np.ndarray:
    """Repeats values from the first on up to a multiple of ``items``."""
    return np.resize(values, (-(-len(values) // items) * items, *values.shape[1:]))


def _moves(seed: int, name: str, vector: bool) -> list[Case]:
    cases = []
    for dtype, (word, _, _) in BITS.items():
        full = f"{name}<{dtype}>"
        size = 16 // np.dtype(word).itemsize if vector else 1
        random = Source(seed, full).words(word, THREADS * 4 * size)
        values = as_bytes(_padded(np.concatenate([special_bits(dtype), random]), THREADS * size).reshape(-1, size))
        cases.append(Case(full, values, lambda values=values: values))
    return cases


def _some_moves(seed: int) -> list[Case]:
    """Of every other item; the rest are zeros."""
    cases = []
    for case in _moves(seed, "load_vector_if", vector=True):
        values = case.input[:THREADS]
        truth = values.copy()
        truth[1::2] = 0
        cases.append(Case(case.name, values, lambda truth=truth: truth))
    return cases


def _random_bits(seed: int, name: str, dtype: str, items: int) -> np.ndarray:
    return np.concatenate([special_bits(dtype), Source(seed, name).words(BITS[dtype][0], items)])


def _widen(seed: int, dtype: str) -> Case:
    name = f"widen<{dtype}>"
    word = BITS[dtype][0]
    if word is np.uint16:
        bits = np.arange(1 << 16, dtype=word)  # all there are
    else:
        bits = _padded(_random_bits(seed, name, dtype, 1024))

    def truth() -> np.ndarray:
        values = floats_of(bits, dtype)
        with np.errstate(invalid="ignore"):  # signalling NaNs
            return as_bytes(values.astype(np.float32) if word is np.uint16 else values)

    return Case(name, as_bytes(bits), truth, WIDENED[dtype])


def _narrow(seed: int, dtype: str) -> Case:
    name = f"narrow<{dtype}>"
    wide = WIDENED[dtype]
    bits = _random_bits(seed, name, wide, 8192)
    if BITS[dtype][0] is np.uint16:
        # Results, the ties between neighbours, and what lies just beside each tie.
        results = np.arange(0, 1 << 16, 7, dtype=np.uint16)
        with np.errstate(invalid="ignore", over="ignore"):
            here = floats_of(results, dtype).astype(np.float32)
            beyond = floats_of(results + np.uint16(1), dtype).astype(np.float32)
            ties = ((here.astype(np.float64) + beyond) / 2).astype(np.float32).view(np.uint32)
        edges = [here.view(np.uint32), ties, ties - np.uint32(1), ties + np.uint32(1)]
        # float16's range within float32's, which random bits seldom hit.
        inside = Source(seed, name + "inside").words(np.uint32, 8192) % np.uint32(0x2000_0000) + np.uint32(0x3000_0000)
        bits = np.concatenate([bits, *edges, inside, inside | np.uint32(1 << 31)])
    bits = _padded(bits)

    def truth() -> np.ndarray:
        if dtype == "float16":
            with np.errstate(over="ignore", invalid="ignore"):
                return as_bytes(bits.view(np.float32).astype(np.float16))
        if dtype == "bfloat16":
            return as_bytes(torch.from_numpy(bits.view(np.float32)).to(torch.bfloat16).view(torch.int16).numpy())
        return as_bytes(bits)

    return Case(name, as_bytes(bits), truth, dtype)


def _words(seed: int, dtype: str) -> list[Case]:
    """Words of 4 bytes, which are moved, widened element by element, and made of as many floats."""
    size = 4 // np.dtype(BITS[dtype][0]).itemsize
    special = special_bits(dtype)
    pairs = np.stack(np.meshgrid(*[special] * size, indexing="ij"), -1).reshape(-1, size)
    random = Source(seed, f"word<{dtype}>").words(BITS[dtype][0], THREADS, size)
    elements = as_bytes(_padded(np.concatenate([pairs, random])))

    def widened() -> np.ndarray:
        with np.errstate(invalid="ignore"):  # signalling NaNs
            return as_bytes(floats_of(elements, dtype).astype(np.float32))

    floats = _padded(_random_bits(seed, f"narrow_word<{dtype}>", "float", THREADS * size), THREADS * size)
    # Half of them near 1, where rounding shows.
    floats[::2] = floats[::2] % np.uint32(1 << 25) + np.uint32(0x3F00_0000)

    def narrowed() -> np.ndarray:
        values = torch.from_numpy(floats.view(np.float32).copy())
        kind = {"float": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[dtype]
        return as_bytes(values.to(kind).view(torch.uint8).numpy().reshape(-1, 4))

    return [
        Case(f"read_word<{dtype}>", elements, lambda: elements),
        Case(f"store_word<{dtype}>", elements, lambda: elements),
        Case(f"widen_word<{dtype}>", elements, widened, "float"),
        Case(f"narrow_word<{dtype}>", as_bytes(floats.reshape(-1, size)), narrowed, dtype),
    ]


# --- fused multiply-add --------------------------------------------------------------------------------


def _multiply_add(seed: int, dtype: str) -> Case:
    name = f"multiply_add<{dtype}>"
    word, exponent_bits, fraction_bits = BITS[dtype]
    source = Source(seed, name)
    special = special_bits(dtype)
    triples = np.stack(np.meshgrid(special, special, special[::3], indexing="ij"), -1).reshape(-1, 3)
    anywhere = source.words(word, 1024, 3)
    # Near 1, where a second rounding would show in the last bit.
    near = source.words(word, 2048, 3) % word(1 << (fraction_bits + 2)) + word(
        (1 << (exponent_bits - 1)) - 3 << fraction_bits
    )
    # c takes away nearly all of a·b; what is left is the product's own rounding error.
    cancelling = near.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        cancelling[:, 2] = as_bytes(-(floats_of(near[:, 0], dtype) * floats_of(near[:, 1], dtype))).view(word)[:, 0]
    # a·b is subnormal, or far below the last bit of c.
    tiny = near.copy()
    tiny[:, 0] -= word((1 << (exponent_bits - 1)) - 8 << fraction_bits)
    tiny[::2, 2] %= word(1 << fraction_bits)
    bits = _padded(np.concatenate([triples, anywhere, near, cancelling, tiny]))
    return Case(name, as_bytes(bits), lambda: as_bytes(_true_multiply_add(bits, dtype)), dtype)


def _true_multiply_add(bits: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # signalling NaNs
        values = floats_of(bits, dtype).astype(np.float64).tolist()
    result = [_fused(*triple, dtype) for triple in values]
    return np.array(result, np.float64).astype(np.float64 if dtype == "double" else np.float32)


def _fused(a: float, b: float, c: float, dtype: str) -> float:
    if not (math.isfinite(a) and math.isfinite(b)):
        return a * b + c
    if not math.isfinite(c):
        return c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        negative = math.copysign(1, a) * math.copysign(1, b) < 0
        # Of zeros alone the sign is theirs; a difference of equals is +0.
        zeros = (a == 0 or b == 0) and c == 0
        return -0.0 if zeros and negative and math.copysign(1, c) < 0 else 0.0
    return round_to(exact, dtype)


# --- square root ---------------------------------------------------------------------------------------


def _square_root(seed: int, dtype: str) -> Case:
    name = f"square_root<{dtype}>"
    word, exponent_bits, fraction_bits = BITS[dtype]
    source = Source(seed, name)
    anywhere = source.words(word, 512, 1)
    # From 1 to 4, where every pattern of rounding occurs, and squares, which need none.
    near = source.words(word, 1024, 1) % word(2 << fraction_bits) + word(
        ((1 << (exponent_bits - 1)) - 1) << fraction_bits
    )
    roots = (source.words(np.uint32, 256, 1) >> np.uint32(32 - (fraction_bits + 1) // 2)).astype(np.float64)
    squares = as_bytes((roots**2).astype(floats_of(near, dtype).dtype)).view(word)
    bits = _padded(np.concatenate([special_bits(dtype)[:, None], anywhere, near, squares]))
    return Case(name, as_bytes(bits), lambda: as_bytes(_true_square_root(bits, dtype)), dtype)


def _true_square_root(bits: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # signalling NaNs
        values = floats_of(bits, dtype).astype(np.float64).ravel().tolist()
    result = [_rooted(value, dtype) for value in values]
    return np.array(result, np.float64).astype(np.float64 if dtype == "double" else np.float32)[:, None]


def _rooted(x: float, dtype: str) -> float:
    if x < 0 or math.isnan(x):
        return math.nan
    if x == 0 or math.isinf(x):
        return x
    # More digits than any dtype has; a half beyond them stands for the rest, if there is one.
    scaled = Fraction(x) * Fraction(4) ** 1200
    root = math.isqrt(scaled.numerator // scaled.denominator)
    rest = Fraction(0) if root * root == scaled else Fraction(1, 2)
    return round_to((root + rest) / Fraction(2) ** 1200, dtype)


def round_to(x: Fraction, dtype: str) -> float:
    """To the nearest number of a dtype, ties to even; not of zero."""
    _, exponent_bits, fraction_bits = BITS[dtype]
    largest = (1 << (exponent_bits - 1)) - 1
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
    exponent -= abs(x) < Fraction(2) ** exponent
    last = max(exponent, 1 - largest) - fraction_bits
    count = round(abs(x) / Fraction(2) ** last)
    overflows = count * Fraction(2) ** last >= Fraction(2) ** (largest + 1)
    return math.copysign(math.inf if overflows else math.ldexp(count, last), 1 if x > 0 else -1)


# --- asynchronous copies -------------------------------------------------------------------------------


def _copy(seed: int, size: int) -> Case:
    name = f"copy_async<{size}>"
    source = Source(seed, name)
    data = as_bytes(source.words(np.uint32, THREADS * 8, 4))
    # Even numbers: an element has two bytes at least.
    given = source.words(np.uint32, len(data)) % np.uint32(size // 2 + 1) * np.uint32(2)
    words = np.zeros((len(data), 4), np.uint32)
    words[:, 0] = given

    def truth() -> np.ndarray:
        place = np.arange(16)[None]
        copied = np.where(place < given[:, None], data, 0)
        own = np.where(place < size, copied, FILL).astype(np.uint8)
        other = own.reshape(-1, THREADS, 16)[:, ::-1].reshape(-1, 16)
        return np.concatenate([own, other], 1)

    return Case(name, np.concatenate([data, as_bytes(words)], 1), truth)


def _pipelines(seed: int) -> Sequence[Case]:
    cases = []
    for name in ("commit_copies", "wait_copies<0>", "wait_copies<1>", "wait_copies<2>"):
        tiles = Source(seed, name).words(np.uint32, THREADS * 12, TILES, 4)

        def truth(tiles: np.ndarray = tiles, own: bool = name == "commit_copies") -> np.ndarray:
            result = np.zeros(tiles.shape[:2], np.uint32)
            for i in range(4):
                result = result * np.uint32(31) + tiles[..., i]
            blocks = result.reshape(-1, THREADS, TILES)
            return as_bytes((blocks if own else np.roll(blocks, -WARP, 1)).reshape(-1, TILES))

        cases.append(Case(name, as_bytes(tiles), truth))
    return cases
