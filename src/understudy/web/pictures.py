"""Pictures of a network's input, with what a latent does at the places of a grid over them as shades."""

from collections.abc import Sequence
from itertools import groupby

from understudy.core.records.scorecard import Context, Image, Picture
from understudy.web.markup import Markup, join, png, tag
from understudy.web.numerals import plain
from understudy.web.tokens import SHADES, shade

UNIT = 96
"""Length of a picture's longer edge in its own units; lines are drawn in these."""
LINE = 1.3
"""Half the width of an outline, which lies inside its place."""


def album(images: Sequence[Image]) -> Markup | None:
    """Every picture once, out of sight; tiles refer to them by number."""
    if not images:
        return None
    kept = [_kept(i, image) for i, image in enumerate(images)]
    return tag("svg", tag("defs", *kept), class_="album", width=0, height=0, aria_hidden="true")


def _kept(number: int, image: Image) -> Markup:
    width, height = size(image)
    coarse = "coarse" if max(image.width, image.height) <= 64 else "fine"
    return png(image.png, id=f"picture-{number}", width=width, height=height, class_=coarse, preserveAspectRatio="none")


def size(image: Image) -> tuple[float, float]:
    """Width and height in units."""
    longer = max(image.width, image.height)
    return round(UNIT * image.width / longer, 2), round(UNIT * image.height / longer, 2)


def tile(context: Context, images: Sequence[Image], maximum: float, small: bool = False) -> Markup:
    """The picture of a context with the latent's shades, and under it activation and class."""
    shown = context.picture
    if shown is None or not 0 <= shown.image < len(images):
        return tag("span", "no picture", class_="missing")
    width, height = size(images[shown.image])
    heat = _heat(shown, width, height, maximum)
    scene = tag(
        "svg", tag("use", href=f"#picture-{shown.image}"), *heat, viewBox=f"0 0 {width:g} {height:g}",
        class_="tile", role="img", aria_label=_said(shown),
    )  # fmt: skip
    if small:
        return scene
    beside = [_before(shown, maximum)] if any(shown.before) or shown.peak is None else []
    caption = tag(
        "figcaption", tag("b", plain(shown.activation)), " ", tag("span", shown.label, class_="soft"), *beside
    )
    return tag("figure", scene, caption)


def _heat(shown: Picture, width: float, height: float, maximum: float) -> list[Markup]:
    """One path for each shade, and the outline of the place the context was chosen for."""
    if (shown.rows, shown.columns) == (1, 1):
        return []
    high, wide = height / shown.rows, width / shown.columns
    levels = sorted((shade(value, maximum), row, column) for row, column, value in shown.cells)
    out = []
    for level, cells in groupby(levels, key=lambda cell: cell[0]):
        moves = "".join(
            f"M{column * wide:.4g} {row * high:.4g}h{wide:.4g}v{high:.4g}h-{wide:.4g}z" for _, row, column in cells
        )
        out.append(tag("path", d=moves, class_=f"h{min(level, SHADES)}"))
    if shown.peak is not None:
        row, column = shown.peak
        corner = {"x": round(column * wide + LINE, 2), "y": round(row * high + LINE, 2)}
        inner = {"width": round(wide - 2 * LINE, 2), "height": round(high - 2 * LINE, 2)}
        out.append(tag("rect", **corner, **inner, class_="peak"))
    return out


def _before(shown: Picture, maximum: float) -> Markup:
    """Shades of places that lie on no part of the picture."""
    squares = [tag("b", "+", class_=f"a{shade(value, maximum)}", title=plain(value)) for value in shown.before]
    where = "class token" if shown.peak is None else "class token too"
    return join(" ", tag("span", *squares, " ", where, class_="text soft"))


def _said(shown: Picture) -> str:
    of = f"class {shown.label}: " if shown.label else ""
    if (shown.rows, shown.columns) == (1, 1):
        return f"{of}activation {plain(shown.activation)}"
    where = "the class token" if shown.peak is None else f"row {shown.peak[0] + 1}, column {shown.peak[1] + 1}"
    on = f"{len(shown.cells)} of {shown.rows * shown.columns} places on"
    return f"{of}{on}; {plain(shown.activation)} at {where}"
