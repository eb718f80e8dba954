"""How the plots look, and how they become SVG for a page: its text can be selected."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, FixedLocator, NullFormatter, NullLocator

from loadtests.results import Sample
from loadtests.words import short

#: Okabe and Ito's colours, which colour-blind readers tell apart, the light ones last.
INKS = ("#0072B2", "#D55E00", "#009E73", "#A64D86", "#56B4E9", "#E69F00", "#4D4D4D")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#6B7280"
FAINT = "#E5E7EB"
RED = "#B3261E"

#: Inches; the page shows an inch as about 96 px, and narrows what is too wide.
WIDTH = 9.6

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a version's or gauge's name may hold a $
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.labelcolor": "#1F2937",
    "axes.edgecolor": "#9CA3AF",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": "#374151",
    "ytick.color": "#374151",
    "text.color": "#1F2937",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.7,
    "lines.markersize": 5,
    "path.simplify": False,
}

#: What a browser shows where the font that matplotlib measured is missing: narrower ones fit, too.
_FAMILIES = "'DejaVu Sans', Verdana, system-ui, sans-serif"


class Plot(NamedTuple):
    """`label` is for who cannot see the plot, `caption` for who can."""

    name: str
    label: str
    caption: str
    svg: str


def styled(name: str) -> AbstractContextManager[None]:
    """Our style, for what is made and drawn inside. `name` is what the plot's ids are made of."""
    return matplotlib.rc_context({**_STYLE, "svg.hashsalt": name})


def canvas(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of `height` inches; never pyplot's, which would keep it."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=0.05))


def svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an element for an HTML page: it names no fonts, scripts or pages from outside,
    and its ids begin with `name`, for those of several plots would be the same."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # What this font lacks the browser has in another; only its width is guessed.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(out, format="svg", metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<style type=\"text/css\">.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r"'DejaVu Sans'(, sans-serif)?", _FAMILIES, text)
    width, height = (round(inches * 72) for inches in figure.get_size_inches())
    head = f'<svg role="img" aria-label="{_attribute(label)}" viewBox="0 0 {width} {height}" '
    head += 'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg">'
    return re.sub(r"\s*\n\s*", "\n", head + text[text.index(">") + 1 :]).strip()


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def log_seconds(axes: Axes, which: str, low: float, high: float, most: int = 8) -> None:
    """A logarithmic axis from `low` to `high` seconds, with ticks such as 1, 2 and 5 ms, so that
    there are some within less than a decade, too; only 1, 10 and 100 where they are over `most`."""
    steps = _steps(low, high)
    tens = [step for step in steps if f"{step:.0e}"[0] == "1"]
    named = steps if len(steps) <= most else tens if len(tens) > 1 else steps[:: len(steps) // 2]
    set_scale = axes.set_xscale if which == "x" else axes.set_yscale
    set_scale("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(named))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(EngFormatter(unit="s"))
    axis.set_minor_formatter(NullFormatter())
    (axes.set_xlim if which == "x" else axes.set_ylim)(steps[0], steps[-1])


def _steps(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten, from one below `low` to one above `high`."""
    low = max(low, 1e-6)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(max(high, low)))
    every = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
    start = max(i for i, step in enumerate(every) if step <= low * 1.0001)
    end = next(i for i, step in enumerate(every) if step >= high * 0.9999)
    return every[start : max(end, start + 1) + 1]


def groups(samples: Sequence[Sample], most: int = len(INKS)) -> dict[str, list[Sample]]:
    """Samples by what tells them apart: version, label or target, those of them that differ.

    At most `most` groups, the largest; one group where nothing differs.
    """
    fields = [
        field
        for field in ("target", "version", "label")
        if len({getattr(sample, field) for sample in samples}) > 1
    ]
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        name = " · ".join(str(getattr(sample, field)) or "none" for field in fields)
        found.setdefault(name, []).append(sample)
    largest = sorted(found, key=lambda name: -len(found[name]))[:most]
    return {short(name): found[name] for name in sorted(largest)}
