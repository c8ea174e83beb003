"""One training pass after the other: forward, backward and, of a whole step, the optimizer's part, by a provider."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from jpu_cuda import explain
from jpu_cuda.backend import BackendUnavailableError, Explanation
from jpu_cuda.modules.core import JointPyramid

from .providers import Provider, chosen, compile_for, settings
from .workloads import Pyramid

GRADIENT = "gradient of "


class Pass:
    """Forward and backward pass of a model, to be made again and again.

    Args:
        model: in training mode.
        inputs: its arguments.
        gradient: of its result; None for a loss.
        autocast: dtype of autocast, or None for none.
        call: what computes the model; itself if None.
        optimizer: steps after the backward pass, if there is one.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[Tensor],
        gradient: Tensor | None,
        autocast: torch.dtype | None,
        call: Callable[..., Any] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self._model, self._call = model, model if call is None else call  # whose length would be asked for
        self._inputs, self._gradient = inputs, gradient
        self._autocast, self._optimizer = autocast, optimizer
        self._leaves = [x for x in (*inputs, *model.parameters()) if x.requires_grad]
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self._result: Tensor | None = None

    @property
    def known(self) -> list[Tensor]:
        """What is there before a pass: inputs, parameters, buffers."""
        return [*self._inputs, *self._model.parameters(), *self._model.buffers()]

    def forward(self) -> None:
        with autocasting(self._inputs[0].device, self._autocast):
            self._result = self._call(*self._inputs)

    def backward(self) -> None:
        """Takes the gradients, lets the optimizer step, and drops them."""
        self._differentiate()
        if self._optimizer is not None:
            self._optimizer.step()
        self._drop()

    def results(self) -> dict[str, Tensor]:
        """Output, gradients and buffers after one pass from where they were at first; no optimizer steps."""
        for buffer, value in self._buffers:
            buffer.copy_(value)
        self.forward()
        assert self._result is not None
        output = self._result.detach().clone()
        self._differentiate()
        found = {"output": output}
        named = [(f"input {i}", x) for i, x in enumerate(self._inputs)] + list(self._model.named_parameters())
        found |= {GRADIENT + name: x.grad.clone() for name, x in named if x.grad is not None}
        # Counters too: float64 holds them.
        buffers = self._model.named_buffers()
        found |= {name: (x if x.is_floating_point() else x.double()).clone() for name, x in buffers}
        self._drop()
        return found

    def _differentiate(self) -> None:
        assert self._result is not None
        result, self._result = self._result, None
        torch.autograd.backward([result], [self._gradient])

    def _drop(self) -> None:
        for leaf in self._leaves:
            leaf.grad = None


def autocasting(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


@contextmanager
def serve(
    provider: Provider,
    model: nn.Module,
    inputs: Sequence[Tensor],
    gradient: Tensor | None,
    autocast: torch.dtype | None = None,
    tf32: bool | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Iterator[Pass]:
    """Passes of a model by a provider; they hold within the ``with`` block.

    Raises:
        BackendUnavailableError: kernels were asked for and PyTorch would serve the branches, or another policy would.
    """
    with ExitStack() as stack:
        stack.enter_context(settings(tf32, provider.depthwise))
        stack.enter_context(chosen(provider))
        call: Callable[..., Any] = model
        if provider.backend != "reference":
            with autocasting(inputs[0].device, autocast):
                _demand_kernels(provider, model, inputs)
        if provider.compiled:
            call, inputs = compile_for(stack, provider, model, inputs)
        yield Pass(model, inputs, gradient, autocast, call, optimizer)


def _demand_kernels(provider: Provider, model: nn.Module, inputs: Sequence[Tensor]) -> None:
    found = _explanation(model, inputs)
    if found.policy == "torch":
        raise BackendUnavailableError(found.reason)
    if provider.policy not in ("auto", found.policy):
        reason = f"policy {provider.policy!r} does not take this, {found.policy!r} does: {found.reason}"
        raise BackendUnavailableError(reason)


def _explanation(model: nn.Module, inputs: Sequence[Tensor]) -> Explanation:
    """Who serves the JPU of a model."""
    if isinstance(model, Pyramid):
        return explain(model.jpu, inputs[0], *inputs)
    found: list[Explanation] = []
    twin = copy.deepcopy(model)  # whose running statistics may change
    jpu = next(module for module in twin.modules() if isinstance(module, JointPyramid))
    jpu.register_forward_pre_hook(lambda module, levels: found.append(explain(module, *levels)))
    twin(*inputs)
    return found[0]
