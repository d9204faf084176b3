"""The picture of a noise scale: an SVG strip on a log axis, one row per class of rounding.

Draws only its own words and numbers, never text from a host or a run folder. Colours are CSS
variables with fallbacks, so the page that holds the picture decides light and dark.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Final

from verifier.records import NoiseScale
from verifier.reference.variants import VARIANTS, Family
from verifier.wording import describe_interval, describe_number, describe_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELS: Final[dict[Family, str]] = {
    "int8": "8-bit integers",
    "fp8": "8-bit floats",
    "4-bit": "4-bit rounding",
    "3-bit": "3-bit rounding",
    "2-bit": "2-bit rounding",
    "layers": "layers dropped",
    "gguf": "GGUF builds",
    "cache": "caches rounded",
}
_OTHER: Final = "other builds"

#: No noise that is measured is smaller or larger (logits).
_LEAST, _MOST = 1e-4, 1e4

# Colours that stand for a CSS variable: matplotlib takes colours only, so each is replaced after.
_INK, _MUTED, _HONEST, _SPAN, _MARK, _RULE = (f"#{n:02x}fe{n:02x}" for n in range(1, 7))
_VARIABLES: Final = {
    _INK: "var(--ink, #1c2024)",
    _MUTED: "var(--muted, #5a636e)",
    _HONEST: "var(--honest, #cfe8d5)",
    _SPAN: "var(--span, #2f5fd0)",
    _MARK: "var(--mark, #8a5a00)",
    _RULE: "var(--rule, #d5d9de)",
}

#: Settings of matplotlib hold for the whole process, and audits side by side draw at once.
_DRAWING: Final = Lock()

_NO_METADATA: Final = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_FONT: Final = "DejaVu Sans"  # comes with matplotlib
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM, _ROW = 480.0, 158.0, 14.0, 24.0, 44.0, 38.0  # CSS pixels


def group_marks(marks: Sequence[tuple[str, float]]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Marks by class of rounding, classes in the bank's order; what the bank lacks comes last.

    A mark is a variant of the bank, or one of its classes by name.
    """
    groups: dict[str, list[tuple[str, float]]] = {label: [] for label in _LABELS.values()}
    groups[_OTHER] = []
    classes: dict[str, str] = dict(_LABELS.items())
    for name, scale in marks:
        if not scale > 0:
            continue  # has no place on a log axis
        variant = VARIANTS.get(name)
        label = _LABELS[variant.family] if variant else classes.get(name, _OTHER)
        groups[label].append((name, scale))
    return [(label, sorted(found, key=lambda m: m[1])) for label, found in groups.items() if found]


def describe_dial(scale: NoiseScale) -> str:
    """What the picture shows, in words, for readers who do not see it."""
    rows = "; ".join(
        f"{label} {_span([s for _, s in marks])}" for label, marks in group_marks(scale.marks)
    )
    known = f" Known departures on this model: {rows}." if rows else ""
    honest = f"Honest serving: 0 to {describe_number(scale.honest)}."
    return f"Logit-noise scale: {describe_scale(scale)}. {honest}{known}"


@lru_cache(maxsize=32)  # a folder that is decided again mostly has the scale it had
def draw_dial(scale: NoiseScale) -> str:
    """The dial as one `<svg>` element without title, links, scripts or a date.

    The same scale gives the same bytes under the same matplotlib.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    scale = _drawable(scale)
    groups = group_marks(scale.marks)
    height = _TOP + _ROW * (1 + len(groups)) + _BOTTOM
    with _DRAWING, mpl.rc_context():
        mpl.rcdefaults()
        mpl.rc("svg", fonttype="none", hashsalt="dial")
        mpl.rc("font", family=[_FONT])
        figure = Figure(figsize=(_WIDTH / 72, height / 72), dpi=72)
        figure.patch.set_visible(False)
        FigureCanvasSVG(figure)
        box = (
            _LEFT / _WIDTH,
            _BOTTOM / height,
            (_WIDTH - _LEFT - _RIGHT) / _WIDTH,
            1 - (_TOP + _BOTTOM) / height,
        )
        axes = figure.add_axes(box)
        low, high = _limits(scale)
        axes.set_xscale("log")
        axes.set(xlim=(low, high), ylim=(len(groups) + 0.5, -0.5))
        _draw_axis(axes, low, high)
        _draw_estimate(axes, scale, low, high)
        for row, (label, marks) in enumerate(groups, 1):
            _draw_class(axes, row, label, [s for _, s in marks])
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=_NO_METADATA)
    return _bare(file.getvalue(), height)


def _drawable(scale: NoiseScale) -> NoiseScale:
    """The same within what an axis can show: a run folder may claim any number."""

    def clip(value: float) -> float:
        return min(max(value, _LEAST), _MOST) if value > 0 else 0.0

    return replace(
        scale,
        estimate=None if scale.estimate is None else clip(scale.estimate),
        lower=None if scale.lower is None else clip(scale.lower),
        upper=None if scale.upper is None else clip(scale.upper),
        honest=clip(scale.honest),
        marks=tuple((name, clip(value)) for name, value in scale.marks),
    )


def _span(scales: Sequence[float]) -> str:
    low, high = describe_number(min(scales)), describe_number(max(scales))
    return low if low == high else f"{low} to {high}"


def _limits(scale: NoiseScale) -> tuple[float, float]:
    """Ends of the axis: everything inside, but no more than a decade for an extreme bound."""
    honest = scale.honest if scale.honest > 0 else 0.01
    known = [s for _, s in scale.marks if s > 0]
    low, high = min([honest, *known]), max([1.0, honest, *known])
    ours = [s for s in (scale.lower, scale.estimate, scale.upper) if s]
    low, high = max(min([low, *ours]), low / 10), min(max([high, *ours]), high * 10)
    return min(low / 1.3, honest / 5), high * 1.3


def _draw_axis(axes: Axes, low: float, high: float) -> None:
    axes.patch.set_visible(False)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 1000 else (1,)
    ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=11, color=_INK)
    axes.set_xticks([], minor=True)
    axes.set_yticks([])
    axes.tick_params(axis="x", color=_MUTED, length=4)
    axes.vlines(ticks, *axes.get_ylim(), color=_RULE, linewidth=0.8, zorder=0)
    axes.set_xlabel("logit-noise scale (log axis)", fontsize=11, color=_MUTED)


def _draw_estimate(axes: Axes, scale: NoiseScale, low: float, high: float) -> None:
    """The honest range, the interval across all rows, and the endpoint's own row."""
    axes.axvspan(low, max(scale.honest, low), color=_HONEST, linewidth=0, zorder=-1)
    axes.annotate(
        "honest range", (low, 1), xycoords=("data", "axes fraction"), xytext=(0, 8),
        textcoords="offset points", fontsize=11, color=_INK,
    )  # fmt: skip
    if scale.estimate is None:
        _label(axes, 0, "this endpoint", "nothing scored")
        return
    _label(
        axes, 0, "this endpoint", f"{describe_number(scale.estimate)} ({describe_interval(scale)})"
    )
    left = min(max(scale.lower or low, low), high)
    right = high if scale.upper is None else min(max(scale.upper, low), high)
    axes.axvspan(left, right, color=_SPAN, alpha=0.12, linewidth=0, zorder=-0.5)
    axes.hlines(0, left, right, color=_SPAN, linewidth=5)
    if scale.upper is None or scale.upper > high:
        axes.plot([high], [0], ">", color=_SPAN, markersize=11, clip_on=False, gid="unbounded")
    at = min(max(scale.estimate, low), high)
    axes.vlines(at, *axes.get_ylim(), color=_SPAN, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.plot([at], [0], "D", color=_SPAN, markersize=10, zorder=3, gid="estimate")


def _draw_class(axes: Axes, row: int, label: str, scales: Sequence[float]) -> None:
    builds = "1 build" if len(scales) == 1 else f"{len(scales)} builds"
    _label(axes, row, label, f"{builds}, {_span(scales)}")
    axes.hlines(row, min(scales), max(scales), color=_MARK, linewidth=1.5)
    axes.plot(scales, [row] * len(scales), "o", color=_MARK, markersize=6, alpha=0.75)


def _label(axes: Axes, row: int, name: str, below: str) -> None:
    for text, drop, size, color in ((name, 2, 13, _INK), (below, -12, 11, _MUTED)):
        axes.annotate(
            text, (0, row), xycoords=("axes fraction", "data"), xytext=(4 - _LEFT, drop),
            textcoords="offset points", fontsize=size, color=color,
        )  # fmt: skip


def _bare(svg: str, height: float) -> str:
    """The `<svg>` element alone, scalable, in the page's font and colours."""
    inside = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    inside = re.sub(r"<style.*?</style>", "", inside, flags=re.DOTALL)  # it would style the page
    inside = inside.replace(f"'{_FONT}'", f"system-ui, '{_FONT}', sans-serif")
    for colour, variable in _VARIABLES.items():
        inside = inside.replace(colour, variable)
    inside = re.sub(r"[ \t]+\n", "\n", inside)
    return f'<svg viewBox="0 0 {_WIDTH:g} {height:g}" aria-hidden="true">{inside}</svg>\n'
