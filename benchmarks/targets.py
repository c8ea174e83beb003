"""What the project is out for, and whether the last runs bear it out.

Each target is a ratio of two times of one run on one device: of the fastest of what the kernels are held against, over
the fastest way of serving by kernels. They are meant for an H100; what another device gave says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import results, timings, training_report
from .cases import BACKBONES, HEADS, Case, backbone_name, has_jpu
from .providers import PROVIDERS
from .report import Report
from .results import ResultsError, Row
from .timings import Timed, latency, milliseconds
from .training_workloads import TrainingWorkload
from .workloads import W, Workload

EAGER, COMPILED, KERNELS = "PyTorch, launch by launch or in a graph", "PyTorch, compiled", "kernels"
BENCHMARKS = ("inference", "training", "table2")
_BRANCHES = Workload("branches", 64, 64, 16, "bfloat16")
_TRAINED = TrainingWorkload("branches", 60, 60, 16, "bfloat16")
_BATCHES = (1, 16)
# Frames per second with a JPU over those of the dilated twin, with the Encoding head; the paper has 2.0 and 3.05.
_OVER_DILATED = {"resnet50": 3.0, "resnet101": 5.0}


@dataclass(frozen=True)
class Target:
    """One of them.

    Attributes:
        name: what is held against what.
        least: what the ratio should be at least.
        ratio: as measured; None where either side was not.
        detail: the two times.
        row: one of the rows, for device and sources; None where there is none.
    """

    name: str
    least: float
    ratio: float | None = None
    detail: str = ""
    row: Row | None = None

    @property
    def missed(self) -> bool:
        return self.ratio is not None and self.ratio < self.least


def read(folder: Path) -> dict[str, list[Row]]:
    """The last run of each benchmark whose rows are in a folder.

    Raises:
        ResultsError: a file that is there cannot be read.
    """
    paths = {name: folder / f"{name}.jsonl" for name in BENCHMARKS}
    return {name: results.pick_run(results.read(path)) for name, path in paths.items() if path.exists()}


def evaluate(runs: Mapping[str, Sequence[Row]]) -> list[Target]:
    """All targets, measured or not.

    Args:
        runs: rows of one run of each benchmark, by its name.
    """
    return [
        *_of_branches(runs.get("inference", ()), _BRANCHES, "stage (b), inference", _inference_kind),
        *_of_branches(runs.get("training", ()), _TRAINED, "stage (b), forward and backward", _training_kind),
        *_of_table(runs.get("table2", ())),
    ]


def _inference_kind(provider: str) -> str | None:
    known = PROVIDERS.get(provider)
    if known is None or known.products is not None or known.backend == "host":
        return None
    if known.backend == "cuda":
        return KERNELS
    return COMPILED if known.compiled else EAGER


def _training_kind(provider: str) -> str | None:
    if provider == "host":
        return None
    kinds = {training_report.EAGER: EAGER, training_report.COMPILED: COMPILED, training_report.KERNELS: KERNELS}
    return kinds.get(training_report.kind(provider))


def _of_branches(rows: Sequence[Row], wanted: W, name: str, kind: Callable[[str], str | None]) -> list[Target]:
    found: dict[str, Timed[W]] = {}
    if rows:
        calls = [call for call in timings.group(rows, type(wanted)) if call[0].in_any_format == wanted]
        found = timings.fastest(calls, kind).get(wanted, {})
    what = f"{name}, {wanted.height}×{wanted.width}, batch {wanted.batch}, {wanted.dtype}"
    return [_against(f"{what}: {rival}", least, rival, found) for rival, least in ((EAGER, 3.0), (COMPILED, 1.5))]


def _against(name: str, least: float, rival: str, found: Mapping[str, Timed[W]]) -> Target:
    if rival not in found or KERNELS not in found:
        return Target(name, least)
    old, new = latency(found[rival]), latency(found[KERNELS])
    detail = f"{milliseconds(old)} ms ({found[rival][1]}) to {milliseconds(new)} ms ({found[KERNELS][1]})"
    return Target(name, least, old / new, detail, found[KERNELS][2]["latency"])


def _of_table(rows: Sequence[Row]) -> list[Target]:
    fps: dict[Case, tuple[float, Row]] = {}  # the fastest provider's and format's; of a JPU, of kernels alone
    for row in rows:
        if row.metric != "fps":
            continue
        try:
            case = replace(Case.from_dict(row.case), memory_format="contiguous")
        except ValueError as error:
            raise ResultsError(str(error)) from error
        served = row.provider in PROVIDERS and PROVIDERS[row.provider].backend == "cuda"
        if has_jpu(case) == served and row.value > fps.get(case, (0.0, row))[0]:
            fps[case] = row.value, row
    dtypes = list(dict.fromkeys(case.dtype for case in fps)) or ["bfloat16"]
    found = []
    for dtype in dtypes:
        for batch in _BATCHES:
            for backbone in BACKBONES:
                jpu = Case(backbone, "encoding", "jpu", batch=batch, dtype=dtype)
                found.append(_faster(jpu, "none", _OVER_DILATED[backbone], fps))
                heads = (replace(jpu, head=head) for head in HEADS if head != "fcn")
                found += [_faster(case, "fpn", 1.0, fps) for case in heads]
    return found


def _faster(jpu: Case, than: str, least: float, fps: Mapping[Case, tuple[float, Row]]) -> Target:
    rival = replace(jpu, upsampling=than)
    words = {"none": "dilated backbone", "fpn": "FPN"}
    name = f"{backbone_name(jpu.backbone)}, {HEADS[jpu.head]}, {jpu.input}: {words[than]}"
    if jpu not in fps or rival not in fps:
        return Target(name, least)
    (new, row), (old, other) = fps[jpu], fps[rival]
    detail = f"{old:.1f} frames/s ({other.provider}) to {new:.1f} ({row.provider})"
    return Target(name, least, new / old, detail, row)


def table(targets: Iterable[Target], source_hash: str) -> Report:
    """All targets with what was measured.

    Args:
        targets: in this order.
        source_hash: of the sources here; a measurement of others is marked.
    """
    lines, notes = [], ["×: time of what stands after the colon over that of the kernels, the fastest of each"]
    stale = False
    for target in targets:
        verdict, device = "not measured", ""
        if target.row is not None:
            verdict = "missed" if target.missed else "met"
            other = target.row.source_hash != source_hash
            stale |= other
            device = target.row.device + (" *" if other else "")
        ratio = "" if target.ratio is None else f"{target.ratio:.2f}×"
        lines.append([target.name, verdict, device, target.detail, f"≥ {target.least:g}×", ratio])
    if stale:
        notes.append("*: measured with other sources than those here")
    return Report("Targets", notes, ["target", "", "device", "from", "aim", "measured"], 4, lines)
