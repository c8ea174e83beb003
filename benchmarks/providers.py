"""Who may serve a call: PyTorch in the ways that a user would try first, and this package's kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from jpu_cuda import use_backend
from jpu_cuda.backend import BackendUnavailableError, matrix_options
from jpu_cuda.modules.core import JointPyramid

from .cases import MEMORY_FORMATS
from .folding import fold_norms


@dataclass(frozen=True)
class Provider:
    """One way to serve a call.

    Attributes:
        backend: as :class:`jpu_cuda.use_backend` names it.
        policy: likewise.
        arch: likewise.
        depthwise: setting of ``torch.backends.cudnn.depthwise_kernel``.
        folded: whether norms go into the convolutions before them.
        graphed: whether the call is captured in a CUDA graph, which leaves the host's part out.
        compiled: whether by ``torch.compile``.
        only_jpu: whether it compiles the JPU alone, and all else is launched one after the other.
        mode: of the compiler.
        frozen: whether the compiler may take weights for constants.
        products: None for the whole call; ``"bmm"`` or ``"slices"`` for the branches' matrix products alone.
        formats: of memory, in which it is worth timing.
    """

    backend: str = "reference"
    policy: str = "auto"
    arch: int | None = None
    depthwise: str = "auto"
    folded: bool = False
    graphed: bool = False
    compiled: bool = False
    only_jpu: bool = False
    mode: str = "max-autotune"
    frozen: bool = False
    products: str | None = None
    formats: tuple[str, ...] = MEMORY_FORMATS

    @property
    def is_eager(self) -> bool:
        """Whether PyTorch serves it, one launch after the other."""
        return self.backend == "reference" and not (self.compiled or self.graphed or self.products)

    @property
    def needs_jpu(self) -> bool:
        """Whether it differs from a way of PyTorch only where a network has a JPU."""
        return self.backend != "reference" or self.only_jpu


_LAST = ("channels_last",)
_OURS = Provider("cuda", formats=_LAST)
_EAGER = {
    "reference": Provider(),
    "folded": Provider(folded=True),
    "depthwise-cudnn": Provider(depthwise="cudnn"),
    "depthwise-native": Provider(depthwise="native"),
    "folded-cudnn": Provider(folded=True, depthwise="cudnn"),
    "folded-native": Provider(folded=True, depthwise="native"),
}
GRAPH = "-graph"


def _with_graphs(providers: dict[str, Provider]) -> dict[str, Provider]:
    return {
        name + suffix: replace(provider, graphed=bool(suffix))
        for name, provider in providers.items()
        for suffix in (GRAPH, "")
    }


# The most important first; what takes minutes last. `auto` is what "reference" has of depthwise kernels.
PROVIDERS: dict[str, Provider] = {
    # A matrix of pixels × channels is channels_last.
    "gemm": Provider(products="bmm", formats=_LAST),
    "gemm-slices": Provider(products="slices", formats=_LAST),
    "reference": _EAGER["reference"],
    **_with_graphs({"cuda": replace(_OURS, formats=MEMORY_FORMATS[::-1])}),
    **{name: provider for name, provider in _EAGER.items() if name != "reference"},
    **{name + GRAPH: replace(provider, graphed=True) for name, provider in _EAGER.items()},
    **_with_graphs({f"cuda-{policy}": replace(_OURS, policy=policy) for policy in ("mma", "two-pass", "fma")}),
    "host": Provider("host", formats=_LAST),
    # In the place of whole compiled networks, each of which takes minutes. Its graph is the whole network's.
    **_with_graphs({"compiled-jpu": Provider(compiled=True, only_jpu=True, mode="max-autotune-no-cudagraphs")}),
    "compiled": Provider(compiled=True, formats=_LAST),
    "compiled-frozen": Provider(compiled=True, frozen=True, formats=_LAST),
}
# Of training: no graphs but the compiler's, which holds both passes; norms are not folded.
_DEFAULT_MODE = Provider(compiled=True, mode="default")
TRAINING: dict[str, Provider] = {
    **{name: PROVIDERS[name] for name in ("reference", "cuda", "depthwise-cudnn", "depthwise-native")},
    **{name: PROVIDERS[name] for name in ("cuda-mma", "cuda-two-pass", "cuda-fma", "host")},
    "compiled-default": _DEFAULT_MODE,
    "compiled": PROVIDERS["compiled"],
    "cuda-compiled-default": replace(_DEFAULT_MODE, backend="cuda", formats=_LAST),
    "cuda-compiled": replace(PROVIDERS["compiled"], backend="cuda"),
}
# The kernels executed on the CPU are for tests: nobody waits for them otherwise.
DEFAULT = tuple(name for name in PROVIDERS if name != "host")
TRAINING_DEFAULT = tuple(name for name in TRAINING if name != "host")


def why_not(provider: Provider, device: torch.device) -> str | None:
    """Why a provider cannot serve calls on a device; None if it may."""
    if provider.graphed and device.type != "cuda":
        return f"CUDA graphs need a CUDA device, got {device.type}"
    if provider.depthwise != "auto":
        if device.type != "cuda":
            return f"cuDNN needs a CUDA device, got {device.type}"
        if not hasattr(torch.backends.cudnn, "depthwise_kernel"):
            return f"torch {torch.__version__} has no torch.backends.cudnn.depthwise_kernel"
    expected = {"cuda": "cuda", "host": "cpu"}.get(provider.backend, device.type)
    if device.type != expected:
        return f"backend {provider.backend!r} needs tensors on {expected}, got {device.type}"
    try:
        with chosen(provider):
            return None
    except BackendUnavailableError as error:
        return str(error)


def chosen(provider: Provider) -> use_backend:
    """The provider's backend, for a ``with`` block."""
    return use_backend(provider.backend, arch=provider.arch, policy=provider.policy)


@contextmanager
def serve(
    provider: Provider, model: nn.Module, inputs: Sequence[Tensor], tf32: bool | None = None
) -> Iterator[Callable[[], Any]]:
    """A call of the model on the inputs by a provider; it holds within the ``with`` block.

    Args:
        provider: one that :func:`why_not` has nothing against.
        model: in eval mode, in the memory format under test.
        inputs: likewise.
        tf32: as of :func:`settings`.

    Raises:
        RuntimeError: kernels were asked for, and PyTorch served the JPU.
        BackendUnavailableError: the provider does not take these tensors, or its policy another's place.
    """
    with ExitStack() as stack:
        stack.enter_context(settings(tf32, provider.depthwise))
        stack.enter_context(chosen(provider))
        if provider.folded:
            model, folded = fold_norms(model, [x[:1] for x in inputs])
            if not folded:
                raise RuntimeError("expected norms after convolutions, got none")
        # What the compiler makes under inference mode it guards by it; without gradients is what its users have.
        stack.enter_context(torch.no_grad() if provider.compiled else torch.inference_mode())
        if provider.backend != "reference" and any(isinstance(module, JointPyramid) for module in model.modules()):
            _demand_kernels(provider, model, inputs)
        call: Callable[..., Any] = model
        if provider.only_jpu:
            stack.enter_context(_jpu_compiled(provider, model))
        elif provider.compiled:
            call, inputs = compile_for(stack, provider, model, inputs)
        yield _captured(call, inputs) if provider.graphed else lambda: call(*inputs)


def compile_for(
    stack: ExitStack, provider: Provider, model: nn.Module, inputs: Sequence[Tensor]
) -> tuple[Callable[..., Any], list[Tensor]]:
    """A model as a provider's compiler makes it, and the inputs to call it with; both hold within the stack."""
    stack.enter_context(torch._inductor.config.patch(freezing=provider.frozen))
    stack.callback(torch.compiler.reset)
    # Its CUDA graphs copy inputs to where they were captured, unless told that they stay where they are.
    inputs = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
    for x in inputs:
        torch._dynamo.mark_static_address(x)
    return torch.compile(model, mode=provider.mode, dynamic=False), inputs


@contextmanager
def _jpu_compiled(provider: Provider, model: nn.Module) -> Iterator[None]:
    """The JPUs within a network as the compiler makes them."""
    names = [name for name, module in model.named_modules() if isinstance(module, JointPyramid)]
    if not names or "" in names:
        raise ValueError(f"expected a network with a JPU in it, got {type(model).__name__}")
    originals = {name: model.get_submodule(name) for name in names}

    def put(modules: Mapping[str, Any]) -> None:
        for name, module in modules.items():
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module)

    put({name: torch.compile(jpu, mode=provider.mode, dynamic=False) for name, jpu in originals.items()})
    try:
        yield
    finally:
        put(originals)
        torch.compiler.reset()


@contextmanager
def settings(tf32: bool | None = None, depthwise: str = "auto", benchmark: bool = True) -> Iterator[None]:
    """PyTorch's switches.

    Args:
        tf32: whether float32 may be rounded to TF32 in matrix products and convolutions; None for PyTorch's choice.
        depthwise: ``torch.backends.cudnn.depthwise_kernel``, where there is one.
        benchmark: whether cuDNN tries its algorithms out, which is worth it where shapes do not change.
    """
    wanted: list[tuple[Any, str, Any]] = [(torch.backends.cudnn, "benchmark", benchmark)]
    if hasattr(torch.backends.cudnn, "depthwise_kernel"):
        wanted.append((torch.backends.cudnn, "depthwise_kernel", depthwise))
    before = [(module, name, getattr(module, name)) for module, name, _ in wanted]
    with nullcontext() if tf32 is None else _precision(tf32):
        try:
            for module, name, value in wanted:
                setattr(module, name, value)
            yield
        finally:
            for module, name, value in before:
                setattr(module, name, value)


@contextmanager
def _precision(tf32: bool) -> Iterator[None]:
    """Whether float32 may be TF32, by PyTorch's older switches and by its newer ones, which have to agree.

    Setting the older ones changes the newer ones too, but not the other way round.
    """
    cudnn: Any = torch.backends.cudnn  # whose stubs lack the newer ones
    matmul: Any = torch.backends.cuda.matmul
    mkldnn: Any = torch.backends.mkldnn
    newer: list[Any] = []
    if hasattr(cudnn, "conv"):  # since torch 2.9; Inductor's own convolutions go by that of all cuDNN
        newer = [cudnn, cudnn.conv, cudnn.rnn, matmul]
    # Of a CPU's products nothing is asked for, but the older name is theirs as well.
    before = [(switch, switch.fp32_precision) for switch in [*newer, *([mkldnn.matmul] if newer else [])]]
    convolutions = _unless_mixed(lambda: cudnn.allow_tf32, True)
    products = _unless_mixed(torch.get_float32_matmul_precision, "highest")
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = tf32
        for switch in newer:
            switch.fp32_precision = "tf32" if tf32 else "ieee"
        yield
    finally:
        cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)
        for switch, value in before:
            switch.fp32_precision = value


def _unless_mixed(read: Callable[[], Any], default: Any) -> Any:
    """An older switch; PyTorch's default where only newer ones were set, as it may not even be asked then."""
    try:
        return read()
    except RuntimeError:
        return default


class _Calls(TorchDispatchMode):
    """Notes which of the package's operators are called, how matrix products are done, and why so.

    Attributes:
        names: of operators, each without its namespace.
        policies: of each call of the branches, and its reason.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.policies: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "jpu_cuda":
            self.names.add(name)
        if namespace == "jpu_cuda" and name == "separable_pyramid":
            levels, _, pointwise = args[:3]
            outputs = pointwise[0].shape[0]
            choice = torch.ops.jpu_cuda.separable_pyramid_policy(levels[0], outputs, *matrix_options())
            policy, _, reason = choice.partition(": ")
            self.policies.append((policy, reason))
        return func(*args, **(kwargs or {}))


def _demand_kernels(provider: Provider, model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """What the kernels do not take of a JPU is PyTorch's without a word: not what is to be timed."""
    wanted = {"separable_pyramid": "branches", "upsample_fold": "resizing"}
    # A workload of branches alone has stages that do nothing.
    if any(_has_norms(module) for module in model.modules() if isinstance(module, JointPyramid)):
        wanted["norm_relu"] = "stages"
    with _Calls() as seen:
        model(*inputs)
    for name, part in wanted.items():
        if name not in seen.names:
            raise RuntimeError(f"expected kernels to serve the JPU's {part}, PyTorch did; jpu_cuda.explain says why")
    for policy, reason in seen.policies:
        if provider.policy not in ("auto", policy):
            raise BackendUnavailableError(f"policy {provider.policy!r} does not take this, {policy!r} does: {reason}")


def _has_norms(jpu: JointPyramid) -> bool:
    """Whether the stages do anything for a kernel to take over."""
    stages = (jpu.stage(i) for i in range(jpu.num_levels))
    return any(isinstance(module, nn.BatchNorm2d) for stage in stages for module in stage.modules())


def _captured(call: Callable[..., Any], inputs: Sequence[Tensor]) -> Callable[[], Any]:
    """Replays what a call launches; its results lie in the same place every time."""
    with torch.cuda.device(inputs[0].device):
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):  # libraries choose algorithms and take workspaces
            for _ in range(3):
                call(*inputs)
        torch.cuda.current_stream().wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = call(*inputs)

    def replay() -> Any:
        graph.replay()
        return results

    return replay
