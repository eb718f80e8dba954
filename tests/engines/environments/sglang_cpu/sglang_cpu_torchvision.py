"""Lets torchvision be imported beside a CPU build of torch, for the tests only.

SGLang imports torchvision for any model. The build on the package index is for CUDA: its compiled
operators cannot be loaded without it, and torchvision then fails at import, where it describes two
of them to torch. This defines the two, without code behind them, just before torchvision is
imported. `sglang_cpu.pth` runs it at each start of the environment's Python, because SGLang's
worker processes are started afresh; so it does nothing but wait for that import.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class BeforeTorchvision(MetaPathFinder):
    """Finds no module itself: it only hears of the first import of torchvision."""

    library: Any = None  # torch forgets the operators when this object goes

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        if fullname != "torchvision" or self.library is not None:
            return
        torch: Any = importlib.import_module("torch")  # takes seconds: not at each start of pip
        self.library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in OPERATORS:
            self.library.define(operator)


sys.meta_path.insert(0, BeforeTorchvision())
