"""Which wrappers csrc/device has, read off its headers, so that none goes without a probe."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from .inputs import BITS

# From the line on which a function begins; a template's head is the line before.
_FUNCTION = re.compile(
    r"^(?P<template>template <[^\n]*>\n)?"
    r"(?P<indent> *)(?P<head>[A-Za-z][\w:<>,&* ]*?[ &*])(?P<name>\w+)(?P<given><[\w, ]+>)?\((?P<parameters>[^{;]*)\) "
    r"(?:const )?\{(?P<body>[^\n]*\}$|.*?^(?P=indent)\})",
    re.MULTILINE | re.DOTALL,
)


def wrappers(headers: Iterable[str]) -> set[str]:
    """Names as in probe.cu and matrix.cu of all that a kernel reaches the hardware through, from the headers' texts.

    Those are the functions marked JPU_DEVICE or JPU_HOST_DEVICE, and others whose body depends on JPU_CUDA.
    """
    found = [
        match
        for text in headers
        for match in _FUNCTION.finditer(text)
        if re.search(r"\bJPU_(HOST_)?DEVICE\b", match["head"]) or "JPU_CUDA" in match["body"]
    ]
    overloads = Counter(match["name"] for match in found if not match["given"])
    return {name for match in found for name in _instances(match, overloads[match["name"]] > 1)}


def _instances(match: re.Match[str], overloaded: bool) -> Iterable[str]:
    name = match["name"]
    if match["given"]:
        return [name + match["given"]]
    if match["template"] is None:
        return [f"{name}<{match['parameters'].split()[0]}>"] if overloaded else [name]
    if "<class T>" in match["template"]:
        refused = re.findall(r"static_assert\(!std::is_same_v<T, (\w+)>", match["body"])
        return [f"{name}<{dtype}>" for dtype in BITS if dtype not in refused]
    # What a static_assert allows, such as the sizes of a copy.
    allowed = re.search(r"static_assert\((.*?),", match["body"])
    values = re.findall(r"== (\d+)", allowed[1]) if allowed else []
    return [f"{name}<{value}>" for value in values] or [name]


def uncovered(headers: Iterable[str], probed: Iterable[str]) -> list[str]:
    """Wrappers that no case of the probe is named after."""
    probed = set(probed)
    # A template of anything else than dtypes and listed sizes is covered by any of its cases.
    anyhow = probed | {name.split("<")[0] for name in probed}
    return sorted(wrapper for wrapper in wrappers(headers) if wrapper not in anyhow)
