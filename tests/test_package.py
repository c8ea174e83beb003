"""What a user meets first: the import, the version, the names, the files shipped."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files

import pytest

import jpu_cuda


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_version_is_the_distributions() -> None:
    try:
        installed = version("jpu-cuda")
    except PackageNotFoundError:
        pytest.skip("needs jpu_cuda to be installed: here it is only on the path")
    assert jpu_cuda.__version__ == installed


def test_types_are_shipped() -> None:
    assert files("jpu_cuda").joinpath("py.typed").is_file()


def test_importing_loads_neither_model_zoos_nor_mmsegmentation() -> None:
    loaded = run(
        "import sys, jpu_cuda; print(*(m for m in ('timm', 'torchvision', 'mmengine', 'mmcv') if m in sys.modules))"
    )
    assert loaded == ""


def test_mmseg_imports_without_mmengine() -> None:
    absent = "import sys; sys.modules.update(mmengine=None, mmcv=None, mmseg=None); "
    assert run(absent + "import jpu_cuda; print(jpu_cuda.mmseg.JPU.__name__)") == "JPU"


def test_submodules_are_attributes_after_a_plain_import() -> None:
    assert run("import jpu_cuda as j; print(j.models.fastfcn.__name__, j.mmseg.JPU.__name__)") == "fastfcn JPU"


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(jpu_cuda, "nothing")


def test_dir_lists_what_loads_on_first_use() -> None:
    assert {"models", "mmseg", "JPU"} <= set(dir(jpu_cuda))
