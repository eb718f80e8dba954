"""How many tokens a prompt or an answer has: one number, or a distribution in words."""

from __future__ import annotations

import math
import re
from typing import Literal

import msgspec
import numpy as np

Kind = Literal["fixed", "uniform", "normal", "lognormal"]
FORMS = "128, uniform:64:256, normal:128:32 (mean, deviation) or lognormal:128:0.5 (median, sigma)"
_TEXT = re.compile(r"(?:(uniform|normal|lognormal):(\d+):(\d+(?:\.\d+)?)|(\d+))")


class LengthError(Exception):
    """The message says which text is no length, and which are."""


class Length(msgspec.Struct, frozen=True):
    """Tokens. `most` bounds every draw from above, 1 from below."""

    kind: Kind = "fixed"
    a: float = 1.0
    b: float = 0.0
    most: int = 1_000_000

    @classmethod
    def parse(cls, text: str) -> Length:
        """Of one of `FORMS`. Raises `LengthError`."""
        parts = _TEXT.fullmatch(text)
        if parts is None:
            raise LengthError(f"{text!r} is no length; write {FORMS}.")
        if parts[4]:
            return cls("fixed", max(1.0, float(parts[4])))
        kind, a, b = parts[1], float(parts[2]), float(parts[3])
        if a < 1 or (kind == "uniform" and b < a):
            raise LengthError(f"{text!r} is no length: it would give nothing; write {FORMS}.")
        return cls(kind, a, b)  # type: ignore[arg-type]  # the pattern knows the kinds

    def draw(self, rng: np.random.Generator) -> int:
        match self.kind:
            case "fixed":
                value = self.a
            case "uniform":
                value = float(rng.integers(int(self.a), int(self.b) + 1))
            case "normal":
                value = float(rng.normal(self.a, self.b))
            case "lognormal":
                value = float(rng.lognormal(math.log(self.a), self.b))
        return min(self.most, max(1, round(value)))

    def __str__(self) -> str:
        return f"{self.a:g}" if self.kind == "fixed" else f"{self.kind}:{self.a:g}:{self.b:g}"
