"""A survey as one HTML page: no scripts, nothing from the network, light and dark."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

import numpy as np

from pumice.survey import Histogram, Survey, TensorSurvey

SHOWN = 9  # cards of a section
WIDTH, HEIGHT = 960, 180  # of a chart
STYLE = resources.files("pumice") / "page.css"
COLOURS = ("#3b6fb6", "#c8553d", "#2f8f6b", "#8a5fb0", "#b98a1d", "#4a9aa8", "#b04f86", "#6b7280")


def page(found: Survey, version: str) -> str:
    """The whole page, UTF-8 text. Equal surveys give equal pages.

    Parameters
    ----------
    found
        What to show.
    version
        Of pumice, for the last line.
    """
    colours = _colours(found.tensors)
    sections = [
        _head(found),
        _schemes(found.tensors, colours),
        _sizes(found.tensors, colours),
        _errors(found.tensors, colours),
        _losers(found.tensors, colours),
        _maps(found.tensors),
        _table(found.tensors, colours),
        f"<footer>pumice {escape(version)}</footer>",
    ]
    title = escape(found.path)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{title}</title><style>{STYLE.read_text('utf-8')}</style>"
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n'
        + "\n".join(filter(None, sections))
        + "\n</body></html>\n"
    )


def nbytes(count: int) -> str:
    """Bytes for people.

    Examples
    --------
    >>> nbytes(512), nbytes(23_081_000)
    ('512 B', '23.1 MB')
    """
    value, units = float(count), ["B", "KB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{count} B" if count < 1000 else f"{value:.3g} {units[0]}"


def _colours(tensors: Iterable[TensorSurvey]) -> dict[str, str]:
    """A colour for each scheme, the one with the most bytes first."""
    sums: dict[str, int] = {}
    for t in tensors:
        sums[t.scheme] = sums.get(t.scheme, 0) + t.nbytes
    order = sorted(sums, key=lambda scheme: (-sums[scheme], scheme))
    return {scheme: COLOURS[min(i, len(COLOURS) - 1)] for i, scheme in enumerate(order)}


def _head(found: Survey) -> str:
    after, before = found.nbytes, found.nbytes_before
    size = sum(t.size for t in found.tensors)
    facts = {"stored": nbytes(after), "values": f"{size:,}", "arrays": f"{len(found.tensors):,}"}
    if size:
        facts["bits a value"] = f"{8 * after / size:.2f}"
    if before != after and after:
        facts |= {"before": nbytes(before), "smaller": f"{before / after:.2f}×"}
    errors = [t.error for t in found.tensors if t.error is not None]
    if errors:
        facts["largest error"] = f"{max(errors):.3g}"
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f'<h1>{escape(found.path)}</h1>\n<p>{escape(found.format)}</p>\n<dl class="facts">{cells}</dl>'


def _schemes(tensors: Sequence[TensorSurvey], colours: dict[str, str]) -> str:
    rows = []
    for scheme, colour in colours.items():
        of = [t for t in tensors if t.scheme == scheme]
        size, stored = sum(t.size for t in of), sum(t.nbytes for t in of)
        worst = max((t.error for t in of if t.error is not None), default=None)
        bits = f"{8 * stored / size:.2f}" if size else ""
        rows.append((_named(scheme, colour), f"{len(of):,}", f"{size:,}", nbytes(stored), bits, _number(worst)))
    return "<h2>Schemes</h2>" + _rows(("scheme", "arrays", "values", "bytes", "bits a value", "largest error"), rows)


def _sizes(tensors: Sequence[TensorSurvey], colours: dict[str, str]) -> str:
    most = max((max(t.nbytes, t.nbytes_before) for t in tensors), default=0)
    if not most:
        return ""
    width, marks = WIDTH / len(tensors), []
    for i, t in enumerate(tensors):
        heights = [count / most * HEIGHT for count in (t.nbytes_before, t.nbytes)]
        text = (
            f"<title>{escape(t.name)}: {nbytes(t.nbytes_before)}, now {nbytes(t.nbytes)} ({escape(t.scheme)})</title>"
        )
        bar = f'x="{i * width:.2f}" width="{max(width * 0.8, 0.5):.2f}"'
        marks.append(
            f'<g>{text}<rect class="before" {bar} y="{HEIGHT - heights[0]:.2f}" height="{heights[0]:.2f}"/>'
            f'<rect fill="{colours[t.scheme]}" {bar} y="{HEIGHT - heights[1]:.2f}" height="{heights[1]:.2f}"/></g>'
        )
    axis = (
        f'<line class="axis" x1="0" x2="{WIDTH}" y1="{HEIGHT}" y2="{HEIGHT}"/><text x="0" y="-4">{nbytes(most)}</text>'
    )
    return (
        "<h2>Bytes by layer</h2>"
        "<p>Grey is what an array took before, colour what it takes now; in the order of the layers.</p>"
        f'<svg viewBox="0 -16 {WIDTH} {HEIGHT + 18}">{"".join(marks)}{axis}</svg>'
    )


def _errors(tensors: Sequence[TensorSurvey], colours: dict[str, str]) -> str:
    seen = [(i, t, t.error) for i, t in enumerate(tensors) if t.error]
    if not seen:
        return ""
    low = math.floor(math.log10(min(error for _, _, error in seen)))
    high = max(math.ceil(math.log10(max(error for _, _, error in seen))), low + 1)

    def height(error: float) -> float:
        return HEIGHT * (high - math.log10(error)) / (high - low)

    lines = "".join(
        f'<line class="axis" x1="0" x2="{WIDTH}" y1="{height(10.0**e):.1f}" y2="{height(10.0**e):.1f}"/>'
        f'<text x="0" y="{height(10.0**e) - 3:.1f}">{10.0**e:g}</text>'
        for e in range(low, high + 1)
    )
    step = WIDTH / len(tensors)
    dots = "".join(
        f'<circle fill="{colours[t.scheme]}" r="4" cx="{(i + 0.4) * step:.2f}" cy="{height(error):.2f}">'
        f"<title>{escape(t.name)}: {error:.3g} ({escape(t.scheme)})</title></circle>"
        for i, t, error in seen
    )
    return (
        "<h2>Error by layer</h2><p>‖w − w′‖ / ‖w‖ of each array that is not exact.</p>"
        f'<svg viewBox="0 -16 {WIDTH} {HEIGHT + 22}">{lines}{dots}</svg>'
    )


def _losers(tensors: Sequence[TensorSurvey], colours: dict[str, str]) -> str:
    worst = sorted((t for t in tensors if t.error), key=lambda t: -(t.error or 0))[:SHOWN]
    shown = worst or sorted((t for t in tensors if t.values), key=lambda t: -t.nbytes)[:SHOWN]
    if not shown:
        return ""
    cards = []
    for t in shown:
        facts = [_shape(t), t.scheme, f"error {t.error:.3g}" if t.error else ""]
        charts = _histogram(t.values, colours[t.scheme]) + _codes(t.codes, colours[t.scheme])
        cards.append(_card(t.name, facts, charts))
    title = "Largest losers" if worst else "Largest arrays"
    return (
        f"<h2>{title}</h2><p>Above, how often values occur, by a logarithmic scale; "
        "below, the stored integers, if there are any.</p>"
        f'<div class="cards">{"".join(cards)}</div>'
    )


def _maps(tensors: Sequence[TensorSurvey]) -> str:
    sparse = [t for t in tensors if t.density is not None]
    if not sparse:
        return ""
    shown = sparse if len(sparse) <= SHOWN else [sparse[i * len(sparse) // SHOWN] for i in range(SHOWN)]
    cards = [
        _card(t.name, [_shape(t), t.scheme, f"{t.zeros:.1%} zeros"], f'<img alt="density" src="{_picture(t.density)}">')
        for t in shown
        if t.density is not None
    ]
    of = f"{len(shown)} of {len(sparse)} arrays, spread over the layers. " if len(shown) < len(sparse) else ""
    return (
        f"<h2>Where the zeros are</h2><p>{of}Dark cells are full, light ones empty; each map goes from the emptiest "
        f'possible cell (0 %) to a full one (100 %).</p><div class="cards">{"".join(cards)}</div>'
    )


def _table(tensors: Sequence[TensorSurvey], colours: dict[str, str]) -> str:
    rows = [
        (
            _breakable(t.name),
            _shape(t),
            _named(t.scheme, colours[t.scheme]),
            f"{t.nbytes:,}",
            _number(t.bits_per_weight),
            f"{t.zeros:.1%}" if t.zeros else "",
            _number(t.error),
        )
        for t in tensors
    ]
    headings = ("array", "shape", "scheme", "bytes", "bits a value", "zeros", "error")
    return "<h2>All arrays</h2>" + _rows(headings, rows, left=3)


def _histogram(found: Histogram | None, colour: str) -> str:
    if found is None:
        return ""
    marks = _bars(found.counts, colour, 60)
    ends = (
        f'<text x="0" y="74">{-found.bound:.3g}</text><text x="300" y="74" text-anchor="end">{found.bound:.3g}</text>'
    )
    return f'<svg viewBox="0 0 300 80">{marks}{ends}<text x="150" y="74" text-anchor="middle">0</text></svg>'


def _codes(counts: dict[int, int] | None, colour: str) -> str:
    if not counts:
        return ""
    low, high = min(counts), max(counts)
    marks = _bars([counts.get(code, 0) for code in range(low, high + 1)], colour, 40)
    ends = f'<text x="0" y="54">{low}</text><text x="300" y="54" text-anchor="end">{high}</text>'
    return f'<svg viewBox="0 0 300 60">{marks}{ends}</svg>'


def _bars(counts: Sequence[int], colour: str, height: int) -> str:
    """Bars by log(1 + count), so that the few in the tails are seen."""
    top, width = math.log1p(max(counts)), 300 / len(counts)
    return "".join(
        f'<rect fill="{colour}" x="{i * width:.2f}" width="{width * 0.88:.2f}" y="{height - h:.2f}" height="{h:.2f}"/>'
        for i, h in enumerate(height * math.log1p(count) / top for count in counts)
        if h
    )


def _picture(density: Sequence[Sequence[float]]) -> str:
    """A grey PNG of shares, as a data URI."""
    cells = np.asarray(density)
    grey = np.rint(245 - 215 * cells).astype(np.uint8)
    lines = b"".join(b"\0" + line.tobytes() for line in grey)
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 8, 0, 0, 0, 0),
        b"IDAT": zlib.compress(lines, 9),
        b"IEND": b"",
    }
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()


def _card(name: str, facts: Iterable[str], body: str) -> str:
    text = escape(", ".join(filter(None, facts)))
    return f'<div class="card"><h3>{_breakable(name)}</h3><p>{text}</p>{body}</div>'


def _rows(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table; cells are HTML already."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = ("" if i < left else ' class="n"' for i in range(len(cells)))
        return (
            "<tr>" + "".join(f"<{tag}{kind}>{cell}</{tag}>" for cell, kind in zip(cells, kinds, strict=True)) + "</tr>"
        )

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table><thead>{line(headings, "th")}</thead><tbody>{body}</tbody></table></div>'


def _named(scheme: str, colour: str) -> str:
    return f'<span class="key" style="background:{colour}"></span>{escape(scheme)}'


def _breakable(name: str) -> str:
    """A name that may go on in the next line after each dot."""
    return escape(name).replace(".", ".<wbr>")


def _shape(t: TensorSurvey) -> str:
    return " × ".join(map(str, t.shape)) or "scalar"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
