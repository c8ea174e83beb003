"""Settings of every test run."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from faulty_kernels import SCHEDULES

from jpu_cuda import host


def pytest_configure(config: pytest.Config) -> None:
    # Workers share the cores; more threads than that only wait for each other.
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and there is none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _memory_given_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a large test leaves in the allocator is of no use to processes beside this one."""
    yield
    if request.node.get_closest_marker("xdist_group") and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def library() -> ModuleType:
    """The deliberately broken kernels, and right ones beside them."""
    return host.load_module(host.build(faulty=True))


@pytest.fixture(params=SCHEDULES, ids=lambda s: f"seed{s[0]}-{'late' if s[1] else 'early'}")
def scheduled(request: pytest.FixtureRequest, library: ModuleType) -> Iterator[ModuleType]:
    """The same, in each order of threads and with copies that are late or early."""
    seed, late = request.param
    with host.schedule(seed, late=late, module=library):
        yield library
