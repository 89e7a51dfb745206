"""Where every node lies: places from left to right, computation from the bottom up."""

import math
from dataclasses import dataclass

from understudy.core.records.graph_view import GraphView

SLOT, LINE = 25, 25
"""Pixels from node to node."""
LETTER, LONGEST = 7, 9
"""Pixels of a letter of a token, and how many letters are shown."""
MARGIN, LABELS, TARGET_LINE = 16, 190, 21
"""Pixels around a row, right of the targets for their names, and between targets."""
LEAST_ROW = 60
FOOT = 34
"""Pixels under the inputs for their tokens."""


@dataclass(frozen=True)
class Layout:
    """Pixels. A node that is not drawn has no entry."""

    at: dict[int, tuple[float, float]]
    width: float
    height: float
    columns: dict[int, tuple[float, float]]
    """Left end and width of every place that is shown."""
    rows: list[tuple[float, float]]
    """Top and height of every level, from the inputs on."""


def arrange(view: GraphView) -> Layout:
    """Places that only hold an input nothing is drawn from are left out. Nodes of one cell lie in lines, the most
    influential first."""
    drawn = _drawn(view)
    top = len(view.levels) - 1
    last = max((view.nodes[i].place for i in drawn), default=0)
    cells: dict[tuple[int, int], list[int]] = {}
    for i in drawn:
        node = view.nodes[i]
        # A target that belongs to no place is read off at the end.
        place = last if node.level == top and node.place < 0 else node.place
        cells.setdefault((node.level, place), []).append(i)
    for ids in cells.values():
        ids.sort(key=lambda i: -view.nodes[i].influence)
    places = sorted({place for _, place in cells})
    widest = {
        p: max((_across(ids) for (level, q), ids in cells.items() if q == p and level < top), default=1) for p in places
    }
    columns, left = {}, float(MARGIN / 2)
    for p in places:
        letters = min(LONGEST, len(view.card.tokens[p]) if 0 <= p < len(view.card.tokens) else 3)
        width = max(widest[p] * SLOT + MARGIN / 2, letters * LETTER + 10, 32)
        columns[p] = (left, width)
        left += width
    rows, bottom = _rows(cells, top)
    at = {}
    for (level, place), ids in cells.items():
        across = 1 if level == top else _across(ids)
        start, width = columns[place]
        y, height = rows[level]
        for n, i in enumerate(ids):
            line, along = divmod(n, across)
            of = min(across, len(ids) - line * across)
            dx = (along - (of - 1) / 2) * SLOT
            gap = TARGET_LINE if level == top else LINE
            lines = math.ceil(len(ids) / across)
            foot = FOOT if level == 0 else 0
            dy = (line - (lines - 1) / 2) * gap
            at[i] = (round(start + width / 2 + dx, 1), round(y + (height - foot) / 2 + dy, 1))
    return Layout(at, left + LABELS, bottom, columns, rows)


def _drawn(view: GraphView) -> list[int]:
    """Nodes with a place of their own; biases are figures of their targets."""
    return [
        i
        for i, node in enumerate(view.nodes)
        if node.kind in ("latent", "target") or (node.kind in ("error", "input") and (node.outgoing or node.incoming))
    ]


def _across(ids: list[int]) -> int:
    """How many nodes of a cell lie side by side: wider than high."""
    return max(1, math.ceil(math.sqrt(1.6 * len(ids))))


def _rows(cells: dict[tuple[int, int], list[int]], top: int) -> tuple[list[tuple[float, float]], float]:
    """Top and height of every level, and the height of all: level 0 lies lowest."""
    heights = []
    for level in range(top + 1):
        counts = [ids for (lv, _), ids in cells.items() if lv == level]
        if level == top:
            heights.append(max(map(len, counts), default=1) * TARGET_LINE + MARGIN)
        else:
            lines = max((math.ceil(len(ids) / _across(ids)) for ids in counts), default=1)
            heights.append(max(LEAST_ROW, lines * LINE + 1.4 * MARGIN) + (FOOT if level == 0 else 0))
    tops, y = [], 0.0
    for height in reversed(heights):
        tops.append((round(y, 1), round(height, 1)))
        y += height
    return tops[::-1], round(y, 1)
