"""Writes the charts of `charts` as files of their own, SVG and PNG.

A file has no page around it: it brings the colours and the title that a page gives a chart.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from recbole_etegrec.errors import UserError
from recbole_etegrec.storage.atomic import atomic_file, replace_text

STYLE = Path(__file__).with_name("style.css").read_text("utf-8")
CHART_STYLE = Path(__file__).with_name("charts.css").read_text("utf-8")
_FIGURE = re.compile(
    r'<svg role="img" aria-label="([^"]*)" viewBox="0 0 (\d+) (\d+)">(.*?)</svg>', re.DOTALL
)
_HEAD, _MARGIN = 24, 8  # above, with the title, and around
_SCALE = 3  # pixels of a PNG for each of the page


def svg_of(figure: str) -> str:
    """A figure of `charts` as an SVG document, dark on white."""
    title, width, height, body = _FIGURE.search(figure).groups()
    colours = dict(re.findall(r"--(\w+): (#\w+)", STYLE.partition("@media")[0]))
    style = re.sub(r"var\(--(\w+)\)", lambda found: colours[found[1]], CHART_STYLE)
    wide, high = int(width) + 2 * _MARGIN, int(height) + _HEAD + _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" '
        f'viewBox="0 0 {wide} {high}" color="{colours["ink"]}"><title>{title}</title>'
        f"<style>{style.replace('system-ui, ', '')}</style>"
        f'<path fill="#fff" d="M0 0H{wide}V{high}H0Z"/>'
        f'<text x="{_MARGIN}" y="15" style="font-weight: 600; fill: {colours["ink"]}">{title}'
        f'</text><g transform="translate({_MARGIN} {_HEAD})">{body}</g></svg>\n'
    )


def check_png() -> None:
    """Check that PNGs can be made.

    Raises:
        UserError: the package for it is not installed.
    """
    try:
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--png: resvg_py is not installed: pip install 'recbole-etegrec[png]', or leave out "
            "--png"
        ) from error


def write_pngs(folder: Path, html: str) -> None:
    """Write each chart of a page into `folder`, numbered in the page's order.

    Raises:
        UserError: the folder cannot be written.
    """
    import resvg_py

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, found in enumerate(_FIGURE.finditer(html), 1):
            name = "-".join(re.findall(r"[a-z0-9@]+", found[1].lower()))
            data = resvg_py.svg_to_bytes(svg_string=svg_of(found[0]), zoom=_SCALE)
            with atomic_file(folder / f"{number:02}-{name[:60]}.png") as fresh:
                fresh.write_bytes(bytes(data))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error


def write_svgs(folder: Path, figures: Iterable[tuple[str, str]]) -> list[str]:
    """Write figures under the given stems; returns the names of the files."""
    folder.mkdir(exist_ok=True)
    names = []
    for stem, figure in figures:
        names.append(f"{stem}.svg")
        replace_text(folder / names[-1], svg_of(figure))
    return names
