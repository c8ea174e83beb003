"""What a fault is, and how it gets into the sources."""

from __future__ import annotations

from dataclasses import dataclass


class DoesNotApply(ValueError):  # noqa: N818  a verdict on the entry, as its report words it
    """The sources do not hold what a fault replaces."""


@dataclass(frozen=True)
class Fault:
    """One change of one place.

    Attributes:
        name: unique, and what ``--only`` takes.
        file: below csrc/.
        old: exact text, which occurs once.
        new: what stands there instead.
        breaks: one sentence: what is wrong then.
        index: which of several occurrences is meant, from 0; ``count`` says how many there are.
        count: how often ``old`` occurs.
    """

    name: str
    file: str
    old: str
    new: str
    breaks: str
    index: int = 0
    count: int = 1

    def apply(self, text: str) -> str:
        """Puts the fault into the text of its file.

        Raises:
            DoesNotApply: ``old`` does not occur as often as the entry says.
        """
        found = text.count(self.old)
        if found != self.count:
            raise DoesNotApply(
                f"{self.name} does not apply: expected {self.old!r} {self.count} times in csrc/{self.file}, got {found}"
            )
        parts = text.split(self.old)
        head, tail = self.old.join(parts[: self.index + 1]), self.old.join(parts[self.index + 1 :])
        return head + self.new + tail
