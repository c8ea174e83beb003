"""Builds the CUDA kernels where there is a toolkit for them; all metadata stands in pyproject.toml.

``JPU_CUDA_KERNELS`` is ``auto`` (kernels if they can be built, the default), ``off`` (pure Python) or ``on``
(kernels or an error). ``TORCH_CUDA_ARCH_LIST`` sets the architectures and ``MAX_JOBS`` the parallel compilers.
"""

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCE = runpy.run_path(str(ROOT / "jpu_cuda" / "_source.py"))  # importing jpu_cuda would import torch

SOURCE_HASH = SOURCE["source_hash"](ROOT)  # before compiling: a file edited meanwhile makes the binary stale

BINARY, BUILD_INFO, OLDEST_TORCH = SOURCE["BINARY"], SOURCE["BUILD_INFO"], SOURCE["OLDEST_TORCH"]
OLDEST_NVCC, OLDEST_ARCH = (12, 0), (8, 0)
DEFAULT_ARCHS = "8.0;8.6;8.9;9.0a;10.0;12.0+PTX"
ARCHS_BEFORE_BLACKWELL = "8.0;8.6;8.9;9.0a;9.0+PTX"  # nvcc < 12.8; 9.0a runs on 9.0 alone, hence the PTX of 9.0

# No fast-math. Not -fmad=false either: the kernels say fma where they mean it.
FLAGS = ["-O3", "-std=c++20", "-DUSE_CUDA", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
FLAGS += [f"-DTORCH_TARGET_VERSION=0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"]
# cudart is linked in: the stable ABI does not cover it, and its soname changes with every major version of CUDA.
# torch's libraries are named because it loads them privately, which leaves their symbols to none but its dependents.
LINK_FLAGS = ["-shared", "-cudart=static", *(f"-Xlinker={flag}" for flag in ("--exclude-libs=ALL", "-z", "defs"))]
LINK_LIBRARIES = ["-Xlinker=--as-needed", "-ltorch_cpu", "-ltorch_cuda"]


@dataclass(frozen=True)
class Plan:
    """Whether the kernels are built, why not, and with what."""

    build: bool
    why_not: str = ""
    nvcc: str = ""
    cuda: str = ""
    archs: tuple = ()  # as in TORCH_CUDA_ARCH_LIST
    torch: str = ""
    torch_home: str = ""

    def __str__(self):
        if self.build:
            return f"with CUDA kernels (CUDA {self.cuda}, torch {self.torch}, for {';'.join(self.archs)})"
        return f"pure Python, without CUDA kernels: {self.why_not}"


def mode():
    value = os.environ.get("JPU_CUDA_KERNELS", "auto")
    if value not in ("auto", "off", "on"):
        raise SystemExit(f"JPU_CUDA_KERNELS: expected auto, off or on, got {value!r}")
    return value


def kernel_sources(root=ROOT):
    """What goes into the binary; csrc/host executes kernels on the CPU."""
    found = [path for pattern in ("*.cu", "*.cpp") for path in (root / "csrc").glob(f"*/{pattern}")]
    return sorted(path.relative_to(root) for path in found if path.parent.name != "host")


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc", path=str(Path(home) / "bin") if home else None)


def ask_nvcc(nvcc, arguments, pattern):
    """Its version and its toolkit come from nvcc itself, which may be a wrapper that lies elsewhere."""
    done = subprocess.run([nvcc, *arguments], capture_output=True, text=True)
    match = re.search(pattern, done.stdout + done.stderr, re.MULTILINE)
    if match is None:
        raise SystemExit(f"{nvcc} {' '.join(arguments)}: expected {pattern}, got {done.stdout + done.stderr!r}")
    return match[1].strip()


def cuda_version(nvcc):
    return ask_nvcc(nvcc, ["--version"], r"release (\d+\.\d+)")


def numbers(version):
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def parse_archs(text):
    """``'8.0;9.0a;12.0+PTX'``, split by ``;``, commas or spaces, without what is older than the kernels need."""
    archs = [arch for arch in re.split(r"[;,\s]+", text) if arch]
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: expected entries such as 8.0, 9.0a or 12.0+PTX, got {arch!r}")
    return tuple(arch for arch in archs if numbers(arch) >= OLDEST_ARCH)


def gencode(archs):
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def plan_toolkit():
    """All of the decision that can be made before torch is importable."""
    if mode() == "off":
        return Plan(False, "JPU_CUDA_KERNELS=off")
    if not {".cu", ".cpp"} <= {path.suffix for path in kernel_sources()}:
        return Plan(False, "csrc/ holds no kernels")
    if sys.platform != "linux":
        return Plan(False, f"expected Linux, got {sys.platform}")
    if (nvcc := find_nvcc()) is None:
        return Plan(False, "expected nvcc in CUDA_HOME or on PATH, got none")
    if shutil.which(os.environ.get("NVCC_CCBIN", "g++")) is None:
        return Plan(False, "expected a C++ compiler (g++, or NVCC_CCBIN), got none")
    cuda = cuda_version(nvcc)
    if numbers(cuda) < OLDEST_NVCC:
        return Plan(False, f"expected nvcc >= 12.0, got {cuda}")
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST")
    asked = asked or (DEFAULT_ARCHS if numbers(cuda) >= (12, 8) else ARCHS_BEFORE_BLACKWELL)
    archs = parse_archs(asked)
    if not archs:
        return Plan(False, f"expected an architecture >= 8.0 in TORCH_CUDA_ARCH_LIST, got {asked!r}")
    return Plan(True, nvcc=nvcc, cuda=cuda, archs=archs)


def plan_torch(toolkit):
    """The decision for good; reads torch's version file, since importing torch takes seconds."""
    if not toolkit.build:
        return toolkit
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return Plan(False, "expected torch to be importable while building, got none")
    home = Path(spec.origin).parent
    version = runpy.run_path(str(home / "version.py"))
    torch, cuda = str(version["__version__"]), version.get("cuda")
    if numbers(torch) < OLDEST_TORCH:
        return Plan(False, f"expected torch >= 2.10, got {torch}")
    if cuda is None or numbers(cuda)[0] != numbers(toolkit.cuda)[0]:
        return Plan(False, f"expected torch for CUDA {numbers(toolkit.cuda)[0]}, as nvcc is, got torch {torch}")
    return Plan(True, "", toolkit.nvcc, toolkit.cuda, toolkit.archs, torch, str(home))


def write_info(folder, plan):
    info = {"built": plan.build, "why_not": plan.why_not, "source_hash": SOURCE_HASH, "archs": plan.archs}
    info |= {"cuda": plan.cuda, "torch": plan.torch, "torch_target": ".".join(map(str, OLDEST_TORCH))}
    (Path(folder) / BUILD_INFO).write_text(json.dumps(info, indent=1) + "\n")


def run(command):
    """Runs a compiler; its output stays in one piece beside those that run at the same time."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    print(" ".join(command) + "\n" + done.stdout, end="", flush=True)
    if done.returncode != 0:
        raise SystemExit(f"nvcc failed ({done.returncode}); JPU_CUDA_KERNELS=off installs without CUDA kernels")


PLAN = plan_torch(plan_toolkit())


def refuse_if_demanded():
    # Not when setup.py is read: in an isolated build torch is absent until setup_requires has been asked for.
    if mode() == "on" and not PLAN.build:
        raise SystemExit(f"JPU_CUDA_KERNELS=on: {PLAN.why_not}")


class BuildPackage(build_py):
    """Also ships the kernels' sources, which execute on the CPU, and says in a file what was built."""

    def run(self):
        refuse_if_demanded()
        print(f"jpu_cuda: building {PLAN}", flush=True)
        super().run()
        folder = ROOT / "jpu_cuda" if self.editable_mode else Path(self.build_lib) / "jpu_cuda"
        if not self.editable_mode:
            shutil.rmtree(folder / "_source", ignore_errors=True)
            for path in SOURCE["source_files"](ROOT):
                (folder / "_source" / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / path, folder / "_source" / path)
        if not PLAN.build:
            # One that an earlier build left beside the package would contradict what the file says.
            (folder / BINARY).unlink(missing_ok=True)
            write_info(folder, PLAN)

    def get_source_files(self):
        return [*super().get_source_files(), *(str(path) for path in SOURCE["source_files"](ROOT))]


class BuildKernels(build_ext):
    """Runs nvcc itself: torch's BuildExtension guesses the toolkit's place wrongly and links cudart dynamically."""

    def run(self):
        refuse_if_demanded()
        super().run()
        if PLAN.build:
            write_info(ROOT / "jpu_cuda" if self.inplace else Path(self.build_lib) / "jpu_cuda", PLAN)

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")[:-1], BINARY))  # called with and without the package's name

    def build_extension(self, ext):
        temp, target = Path(self.build_temp).resolve(), Path(self.get_ext_fullpath(ext.name)).resolve()
        objects = [temp / f"{source}.o" for source in ext.sources]
        for path in (*objects, target):
            path.parent.mkdir(parents=True, exist_ok=True)
        # nvcc hands .cpp files to the host compiler.
        common = [PLAN.nvcc, *FLAGS, *gencode(PLAN.archs), "-Icsrc", "-isystem", f"{PLAN.torch_home}/include", "-c"]
        commands = [[*common, source, "-o", str(out)] for source, out in zip(ext.sources, objects, strict=True)]
        with ThreadPoolExecutor(self.parallel or int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            list(pool.map(run, commands))
        # nvcc knows its own lib64, but the toolkit of pip packages has lib.
        toolkit = ask_nvcc(PLAN.nvcc, ["-dryrun", "-E", "-x", "cu", os.devnull], r"^#\$ TOP=(.+)$")
        folders = [f"-L{toolkit}/lib", f"-L{PLAN.torch_home}/lib"]
        run([PLAN.nvcc, *LINK_FLAGS, "-o", str(target), *map(str, objects), *folders, *LINK_LIBRARIES])


class BuildWheel(bdist_wheel):
    """Says at the end which wheel it is."""

    def run(self):
        super().run()
        print(f"jpu_cuda: this wheel is {PLAN}", flush=True)


if __name__ == "__main__":
    # The binary holds no Python, so one wheel serves every version; free-threaded Python has no tag to say so.
    stable = PLAN.build and not sysconfig.get_config_var("Py_GIL_DISABLED")
    setup(
        cmdclass={"build_py": BuildPackage, "build_ext": BuildKernels, "bdist_wheel": BuildWheel},
        ext_modules=[Extension("jpu_cuda._kernels", [str(path) for path in kernel_sources()])] if PLAN.build else [],
        setup_requires=["torch>=2.10"] if plan_toolkit().build else [],
        options={"bdist_wheel": {"py_limited_api": "cp310"}} if stable else {},
    )
