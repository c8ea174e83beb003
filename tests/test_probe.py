"""The probe of csrc/device: run on the CPU, held against the truth, and against what GPUs made where that is kept."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from probe import compare, inputs, matrices, small_cases
from probe.compare import Dump, Outputs, ProbeError
from probe.inputs import Case
from probe.wrappers import uncovered, wrappers
from strategies import needs_host

ROOT = Path(__file__).resolve().parents[1]
HEADERS = [path.read_text() for path in sorted((ROOT / "csrc" / "device").glob("*.h"))]
NAMES = list(inputs.make(compare.SEED))

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on PATH, and there is none")


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return inputs.make(compare.SEED)


@pytest.fixture(scope="module")
def program() -> Path:
    return compare.build_host()


@pytest.fixture(scope="module")
def on_host(program: Path, cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    target, outputs = compare.run(program, cases, tmp_path_factory.mktemp("probe"))
    assert target == "host"
    return outputs


def dump_of(cases: dict[str, Case], outputs: Outputs) -> Dump:
    return Dump(compare.SEED, {"target": "a GPU", "inputs": inputs.digest(cases)}, outputs)


# --- the host bodies -----------------------------------------------------------------------------------


@needs_host
@pytest.mark.parametrize("name", NAMES)
def test_the_host_body_agrees_with_the_truth(name: str, cases: dict[str, Case], on_host: Outputs) -> None:
    case = cases[name]
    differences, _ = compare.compare({name: case}, {name: case.truth()}, on_host)
    assert differences == []


@needs_host
@pytest.mark.parametrize("path", sorted(compare.GOLDEN.glob("*.npz")), ids=lambda path: path.stem)
def test_the_host_bodies_agree_with_what_a_gpu_made(path: Path, program: Path, tmp_path: Path) -> None:
    differences, _ = compare.check_dump(compare.read_dump(path), program, tmp_path)
    assert differences == []


@needs_host
def test_every_wrapper_has_a_case_and_every_case_its_data(program: Path) -> None:
    names = compare.probed(program)
    assert sorted(names) == sorted(NAMES)
    assert uncovered(HEADERS, names) == []


def test_the_headers_are_read_right() -> None:
    found = wrappers(HEADERS)
    assert {name.split("<")[0] for name in found} >= {"launch", "block_barrier", "shared_memory", "wait_copies"}
    assert {"copy_async<4>", "copy_async<8>", "copy_async<16>", "widen<float16>", "narrow<bfloat16>"} <= found
    assert {f"{name}<{dtype}>" for name in ("load", "store_vector") for dtype in inputs.BITS} <= found
    assert {"multiply_add<float>", "multiply_add<double>", "thread_index"} <= found
    marked = [re.findall(r"^JPU_DEVICE [^(\n]*?(\w+)(?:<\w+>)?\(", text, re.MULTILINE) for text in HEADERS]
    assert {name for names in marked for name in names} | {"launch"} == {name.split("<")[0] for name in found}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("JPU_DEVICE int cluster_index() {\n#if JPU_CUDA\n  return 1;\n#endif\n}\n", "cluster_index"),
        ("JPU_DEVICE float widen(float8 x) { return x.value(); }\n", "widen<float8>"),
        ("template <>\nJPU_DEVICE float8 narrow<float8>(float x) {\n  return {};\n}\n", "narrow<float8>"),
        (
            'template <class T>\nJPU_DEVICE T f(T x) {\n  static_assert(!std::is_same_v<T, double>, "");\n}\n',
            "f<float16>",
        ),
        ("template <class T>\nJPU_HOST_DEVICE T shuffle(T value, int lane) {\n  return value;\n}\n", "shuffle<double>"),
        ("inline void prefetch(const void* p) {\n#if JPU_CUDA\n  (void)p;\n#endif\n}\n", "prefetch"),
        ("struct Mbarrier {\n  JPU_DEVICE void arrive() {\n    ++count;\n  }\n};\n", "arrive"),
        ("struct Mbarrier {\n  JPU_DEVICE void arrive() const { f(); }\n};\n", "arrive"),
    ],
)
def test_a_wrapper_without_a_probe_is_missed(text: str, name: str) -> None:
    assert name in uncovered([*HEADERS, text], NAMES)


def test_dtypes_that_a_wrapper_refuses_need_no_probe() -> None:
    assert "multiply_matrices<float>" in wrappers(HEADERS)
    assert "multiply_matrices<double>" not in wrappers(HEADERS)


def test_functions_that_reach_no_hardware_need_no_probe() -> None:
    assert wrappers(["inline int half(int x) {\n  return x / 2;\n}\n"]) == set()


# --- comparison ----------------------------------------------------------------------------------------


@needs_host
@pytest.mark.parametrize("name", ["load<float16>", "narrow<bfloat16>", "multiply_add<double>", "copy_async<8>"])
def test_a_tampered_dump_is_reported_by_the_wrappers_name(
    name: str,
    cases: dict[str, Case],
    on_host: Outputs,
    program: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "dump.npz"
    wrong = on_host[name].copy()
    item = next(i for i in range(5, len(wrong)) if wrong[i].any() and wrong[i, -1] & 0x7F != 0x7F)  # no NaN
    wrong[item, 0] ^= 1
    compare.write_dump(path, dump_of(cases, {**on_host, name: wrong}))
    assert compare.main(["host", str(path)]) == 1
    said = capsys.readouterr().out
    assert f"{name}: 1 of {len(wrong)} results differ; item {item}" in said
    assert f"{len(cases) - 1} of {len(cases)} cases agree" in said


@needs_host
def test_a_dump_survives_its_file(cases: dict[str, Case], on_host: Outputs, program: Path, tmp_path: Path) -> None:
    path = tmp_path / "dump.npz"
    compare.write_dump(path, dump_of(cases, on_host))
    read = compare.read_dump(path)
    assert read.about["target"] == "a GPU"
    assert compare.check_dump(read, program, tmp_path)[0] == []
    assert path.stat().st_size < 2**20, "a dump is to be committed"


@needs_host
def test_a_dump_of_other_inputs_is_refused(
    cases: dict[str, Case], on_host: Outputs, program: Path, tmp_path: Path
) -> None:
    other = replace(dump_of(cases, on_host), seed=compare.SEED + 1)
    with pytest.raises(ProbeError, match="expected one of the inputs that the probe makes now"):
        compare.check_dump(other, program, tmp_path)


def test_a_file_that_is_no_dump_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dump.npz"
    path.write_text("no dump")
    with pytest.raises(ProbeError, match="expected a dump of the probe"):
        compare.read_dump(path)


def test_any_nan_equals_any_nan_where_a_wrapper_computes_and_it_is_said() -> None:
    quiet, other = np.array([0x7FC00000], np.uint32), np.array([0x7FFFFFFF], np.uint32)
    pair = [{"x": inputs.as_bytes(bits)} for bits in (quiet, other)]
    computed = Case("x", pair[0]["x"], lambda: pair[0]["x"], "float")
    differences, nans = compare.compare({"x": computed}, *pair)
    assert (differences, nans) == ([], {"x": 1})
    assert "NaNs with other bits, which count as equal: x 1" in compare.report(differences, nans, 1)
    # Moved, not computed: every bit counts.
    differences, nans = compare.compare({"x": replace(computed, floats="")}, *pair)
    assert [d.wrapper for d in differences] == ["x"]
    assert nans == {}


def test_a_nan_equals_no_number() -> None:
    nan, infinity = (inputs.as_bytes(np.array([bits], np.uint16)) for bits in (0x7FFF, 0x7F80))
    case = Case("x", nan, lambda: nan, "bfloat16")
    assert len(compare.compare({"x": case}, {"x": nan}, {"x": infinity})[0]) == 1


def test_results_within_their_bounds_are_equal_and_others_are_not() -> None:
    expected = np.array([[1, 0.0, np.inf, np.nan], [1, 0, np.inf, np.nan]], np.float32)
    got = np.array([[1.5, -0.0, np.inf, np.nan], [1.75, 0, np.inf, np.nan]], np.float32)
    pair = [{"x": inputs.as_bytes(floats)} for floats in (expected, got)]
    case = Case("x", pair[0]["x"], lambda: pair[0]["x"], "float", lambda: np.full((2, 4), 0.5))
    (difference,) = compare.compare({"x": case}, *pair)[0]
    assert (difference.count, difference.first) == (1, 1)
    for wrong in (np.inf, np.nan, -np.inf):
        pair[1]["x"] = inputs.as_bytes(np.array([[1, 0, wrong, wrong], expected[1]], np.float32))
        assert [d.first for d in compare.compare({"x": case}, *pair)[0]] == [0]


# --- matrices ------------------------------------------------------------------------------------------


@needs_host
@pytest.mark.parametrize("dtype", matrices.DEPTHS)
def test_the_host_body_truncates_exact_sums(dtype: str, cases: dict[str, Case], on_host: Outputs) -> None:
    """Bit for bit, where float64 has the sum; so it is no loose bound alone that holds it."""
    at, name = matrices.layout(dtype), f"multiply_matrices<{dtype}>"
    sums, begin, seen = matrices.unpack(at, on_host[name]), 0, 0
    for part in matrices.operands(compare.SEED, dtype):
        own = sums[begin : begin + len(part.a)]
        begin += len(part.a)
        summed = matrices.terms(matrices.values(part.a, dtype), matrices.values(part.b, dtype), part.before)
        for index in list(np.ndindex(own.shape))[::5]:
            if not np.isfinite(summed[index]).all():
                continue
            exact = sum(map(Fraction, summed[index].tolist()))
            if Fraction(float(exact)) == exact:
                assert own[index] == matrices.truncate(np.float64(exact)), (index, part.exact)
                seen += 1
    assert begin == len(sums)
    assert seen > 0.4 * sums.size / 5


@pytest.mark.parametrize("dtype", matrices.DEPTHS)
def test_the_bounds_of_products_would_show_a_wrong_one(dtype: str, cases: dict[str, Case]) -> None:
    """A rounded input, a term that is left out, sums that are kept in the inputs' precision."""
    for part in matrices.operands(compare.SEED, dtype)[1:3]:
        summed = matrices.terms(matrices.values(part.a, dtype), matrices.values(part.b, dtype), part.before)
        most = np.abs(summed).max(-1)
        assert (matrices.bound(summed) < 2.0**-12 * most).all()
    (exact, *_, infinite) = matrices.operands(compare.SEED, dtype)
    assert exact.exact
    assert np.abs(matrices.values(exact.a, dtype)).max() ** 2 * matrices.DEPTHS[dtype] + 1000 < 2.0**23
    assert np.isnan(infinite.before).any()
    bounds = cases[f"multiply_matrices<{dtype}>"].bounds
    assert bounds is not None
    assert (bounds() == 0).any()
    assert (bounds() >= 0).all()


def test_ties_of_tf32_and_their_neighbours_are_among_the_data(cases: dict[str, Case]) -> None:
    for kind in ("float", "uint32_t"):
        case = cases[f"round_tf32<{kind}>"]
        bits, rounded = case.input.view(np.uint32)[:, 0], case.truth().view(np.uint32)[:, 0]
        finite = bits & 0x7F800000 != 0x7F800000
        subnormal = bits & 0x7F800000 == 0
        for low, up in ((0x1000, True), (0xFFF, False), (0x1001, True)):
            for which in (finite & ~subnormal, subnormal):
                found = which & (bits & 0x1FFF == low)
                assert found.any()
                assert (((rounded & 0x7FFFFFFF) > (bits & 0x7FFFFFFF)) == up)[found].all()
        assert (rounded[finite] & 0x1FFF == 0).all()
        assert np.isinf(rounded.view(np.float32)[finite]).any()


def test_a_missing_case_is_refused() -> None:
    data = np.zeros((1, 1), np.uint8)
    with pytest.raises(ProbeError, match="x: expected results on both sides"):
        compare.compare({"x": Case("x", data, lambda: data)}, {"x": data}, {})


# --- inputs ----------------------------------------------------------------------------------------------


def test_inputs_depend_on_the_seed_alone(cases: dict[str, Case]) -> None:
    assert inputs.digest(inputs.make(compare.SEED)) == inputs.digest(cases)
    assert inputs.digest(inputs.make(compare.SEED + 1)) != inputs.digest(cases)


def test_inputs_stay_the_same_in_every_version_of_numpy() -> None:
    """Streams of NumPy's bit generators are promised to stay; dumps rest on that."""
    assert np.random.PCG64([1, 2]).random_raw(2).tolist() == [8271799387826207682, 7948369750201702571]


def test_special_inputs_are_among_the_data(cases: dict[str, Case]) -> None:
    for name, case in cases.items():
        kind, _, dtype = name.rstrip(">").partition("<")
        if kind == "widen":
            assert np.isin(inputs.special_bits(dtype), case.input.view(inputs.BITS[dtype][0])).all()
        elif kind == "multiply_add":
            a, b, c = inputs.floats_of(case.input, dtype).reshape(-1, 3).T
            with np.errstate(all="ignore"):
                assert (np.isfinite(a * b) & (a * b + c == 0) & (c != 0)).any(), "cancellation"
                assert ((np.abs(a * b) < np.finfo(a.dtype).tiny) & (a * b != 0)).any(), "subnormal products"
                assert (np.isinf(a * b + c) & np.isfinite(a) & np.isfinite(b) & np.isfinite(c)).any(), "overflow"
        elif kind == "square_root":
            x = inputs.floats_of(case.input, dtype).astype(np.float64)
            with np.errstate(invalid="ignore"):
                exact = np.sqrt(x) ** 2 == x
                assert (x < 0).any()
                assert (exact & (x > 1)).any()
                assert (~exact & (x > 1)).any()
        elif kind == "copy_async":
            assert set(case.input.view(np.int32)[:, 4]) == set(range(0, int(dtype) + 1, 2))
    assert len(cases["widen<float16>"].input) == len(cases["widen<bfloat16>"].input) == 2**16


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_ties_of_both_parities_are_among_the_data(dtype: str, cases: dict[str, Case]) -> None:
    bits = cases[f"narrow<{dtype}>"].input.view(np.uint32)[:, 0]
    values = torch.from_numpy(bits.view(np.float32).copy())
    narrowed = values.to(getattr(torch, dtype))
    step = torch.finfo(narrowed.dtype).eps * 2.0 ** torch.floor(torch.log2(values.abs()))
    tie = (narrowed.float() - values).abs() == step / 2
    normal = values.abs() >= torch.finfo(narrowed.dtype).tiny
    upwards = narrowed.float().abs() > values.abs()
    assert (tie & normal & upwards).any()
    assert (tie & normal & ~upwards).any()


@pytest.mark.parametrize("dtype", ["double", "float"])
def test_the_exact_multiply_add_rounds_as_floats_do(dtype: str) -> None:
    """Where one factor is 1 the sum is rounded once by hardware too."""
    bits = inputs.Source(3, "sum").words(inputs.BITS[dtype][0], 1000, 3)
    values = inputs.floats_of(bits, dtype).copy()
    values[:, 1] = 1
    with np.errstate(all="ignore"):
        expected = values[:, 0] + values[:, 2]
    np.testing.assert_array_equal(inputs._true_multiply_add(values.view(bits.dtype), dtype), expected)


# --- programs --------------------------------------------------------------------------------------------


@needs_host
@pytest.mark.parametrize("change", ["name", "items"])
def test_the_program_refuses_data_that_do_not_fit(
    change: str, program: Path, cases: dict[str, Case], tmp_path: Path
) -> None:
    case = cases["load<float>"]
    case = replace(case, name="nothing") if change == "name" else replace(case, input=case.input[:-1])
    match = "expected a case that the probe has, got 'nothing'" if change == "name" else "load<float>: expected a mult"
    with pytest.raises(ProbeError, match=match):
        compare.run(program, {case.name: case}, tmp_path)


@needs_nvcc
def test_the_gpus_program_compiles_and_has_the_same_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = compare.runpy.run_path(str(ROOT / "setup.py"))
    program = compare.build_gpu("9.0a")
    assert sorted(compare.probed(program)) == sorted(NAMES)
    # A second time it is there, and needs no compiler; a copy may be no executable any more.
    program.chmod(0o644)
    monkeypatch.setattr(compare.runpy, "run_path", lambda path: {**setup, "find_nvcc": lambda: None})
    assert compare.build_gpu("9.0a") == program
    monkeypatch.setattr(compare, "OUT", tmp_path)
    broken = tmp_path / program.name
    broken.write_text("of another machine")
    with pytest.raises(ProbeError, match="expected nvcc on PATH or a program that starts at .*, got neither"):
        compare.build_gpu("9.0a")


def test_without_a_device_the_comparison_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert compare.main(["gpu"]) == 2
    assert "expected a CUDA device, got none" in capsys.readouterr().err


def test_the_nearest_architecture_is_taken() -> None:
    assert compare.arch_of((9, 0)) == "9.0a"
    assert compare.arch_of((8, 6)) == "8.6"
    assert compare.arch_of((8, 9)) == "8.9"
    with pytest.raises(ProbeError, match=r"got compute capability \(7, 5\)"):
        compare.arch_of((7, 5))


@needs_host
@pytest.mark.parametrize("layout", small_cases.LAYOUTS)
def test_the_sanitizers_small_cases_hold_in_host_execution(layout: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        small_cases.resize(layout, small_cases.SIZES[0], dtype, False, "cpu")
        small_cases.convolve(layout, dtype, "cpu")
        small_cases.fold(layout, dtype, "cpu")


@needs_host
@pytest.mark.parametrize("layout", small_cases.LAYOUTS)
@pytest.mark.parametrize(("norms", "policy", "workspace"), small_cases.TRAINED)
def test_the_sanitizers_trained_cases_hold_in_host_execution(
    layout: str, norms: tuple[str, str], policy: str, workspace: int
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        small_cases.train(layout, dtype, norms, policy, workspace, "cpu")


@needs_host
def test_the_sanitizers_groups_hold_in_host_execution() -> None:
    small_cases.group(torch.float32, "cpu")


@pytest.mark.gpu
def test_the_gpu_and_host_execution_agree(tmp_path: Path) -> None:
    assert compare.main(["gpu", "--dump", str(tmp_path / "gpu.npz")]) == 0
