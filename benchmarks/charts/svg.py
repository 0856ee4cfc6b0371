"""The little that the charts share: scales, ticks, text and one style sheet."""

import math
from collections.abc import Iterable, Sequence
from html import escape

WIDTH = 1120
"""Width of every chart in user units; pages scale it with `width: 100%`."""
LEFT, RIGHT = 64, 18
PLOT_WIDTH = WIDTH - LEFT - RIGHT

STYLE = """
.lb{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
.lb text{fill:var(--lb-muted,#5b6472)}
.lb .title{fill:var(--lb-ink,#1b2330);font-weight:600;font-size:13px}
.lb .grid{stroke:var(--lb-grid,#e4e8ee);stroke-width:1}
.lb .axis{stroke:var(--lb-axis,#aab3c0);stroke-width:1}
.lb .mark{stroke:var(--lb-swap,#c2410c);stroke-width:1.2;stroke-dasharray:3 3;opacity:.75}
.lb .mark.rollback{stroke:var(--lb-back,#7c3aed)}
.lb .badge{fill:var(--lb-swap,#c2410c)}
.lb .badge.rollback{fill:var(--lb-back,#7c3aed)}
.lb .badge-text{fill:#fff;font-size:9.5px;font-weight:600}
.lb .phase-0{fill:var(--lb-phase0,#f4f6f9)}
.lb .phase-1{fill:var(--lb-phase1,#eaf1fb)}
.lb .row-line{stroke:var(--lb-grid,#e4e8ee)}
.lb .bar-text{fill:#fff;font-size:10.5px}
"""


def escaped(content: str) -> str:
    """Makes text fit for the inside of an element."""
    return escape(content)


def number(value: float) -> str:
    """Formats a coordinate shortly."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def document(body: Iterable[str], height: float, label: str) -> str:
    """Wraps elements into one SVG document with its style."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="lb" role="img" '
        f'aria-label="{escape(label, quote=True)}" viewBox="0 0 {WIDTH} {number(height)}" '
        f'width="100%"><style>{STYLE}</style>' + "".join(body) + "</svg>"
    )


def text(x: float, y: float, content: str, *, anchor: str = "start", css: str = "") -> str:
    """Returns a text element; `anchor` is start, middle or end."""
    css = f' class="{css}"' if css else ""
    return (
        f'<text x="{number(x)}" y="{number(y)}" text-anchor="{anchor}"{css}>'
        f"{escape(content)}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """Returns a straight line."""
    return (
        f'<line x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}" '
        f'class="{css}"/>'
    )


def rect(
    x: float, y: float, width: float, height: float, *, fill: str = "", css: str = "", tip: str = ""
) -> str:
    """Returns a rectangle with an optional tooltip."""
    style = f' fill="{fill}"' if fill else f' class="{css}"'
    inner = f"<title>{escape(tip)}</title></rect>" if tip else "</rect>"
    return (
        f'<rect x="{number(x)}" y="{number(y)}" width="{number(max(width, 0.0))}" '
        f'height="{number(height)}"{style}>{inner}'
    )


def polyline(points: Sequence[tuple[float, float]], colour: str, *, width: float = 1.6) -> str:
    """Returns an open line through the points."""
    joined = " ".join(f"{number(x)},{number(y)}" for x, y in points)
    return (
        f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="{width}" '
        'stroke-linejoin="round" stroke-linecap="round"/>'
    )


def ticks(top: float, *, about: int = 4) -> list[float]:
    """Returns round numbers from 0 up to at least `top`, in steps of 1, 2 or 5 times ten^k."""
    if not math.isfinite(top) or top <= 0:
        return [0.0, 1.0]
    raw = top / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    return [index * step for index in range(math.ceil(top / step - 1e-9) + 1)]


def time_ticks(seconds: float, *, about: int = 10) -> list[float]:
    """Returns times from 0 to `seconds` in steps people read easily."""
    for step in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600):
        if seconds / step <= about:
            break
    return [float(at) for at in range(0, int(seconds) + 1, step)]


def clock(seconds: float) -> str:
    """Formats seconds as m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def time_axis(y: float, seconds: float) -> list[str]:
    """Returns labels of a time axis below `y`."""
    parts = [line(LEFT, y, WIDTH - RIGHT, y, "axis")]
    for at in time_ticks(seconds):
        x = x_of(at, seconds)
        parts.append(line(x, y, x, y + 4, "axis"))
        parts.append(text(x, y + 17, clock(at), anchor="middle"))
    return parts


def x_of(at: float, seconds: float) -> float:
    """Returns where a time lies on the shared x axis."""
    return LEFT + PLOT_WIDTH * (at / seconds if seconds > 0 else 0.0)
