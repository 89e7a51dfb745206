"""See modular addition grok: loss, restricted and excluded loss at every checkpoint of the organism.

    python recipes/grokking.py [--seed 0] [--out grokking.html]

Prints a row for each hundredth epoch and writes a page with the curves; trains the organism if it is not cached (a
minute or two on one core). The same rows are in `world.truth.facts["through training"]`. The figures of seed 0 stand
in `docs/guide/organisms.md`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from understudy.cli.progress import TerminalProgress
from understudy.organisms.modular_addition import Point, modular_addition, through_training
from understudy.web.charts import Line, legend, line_chart
from understudy.web.markup import tag
from understudy.web.page import document
from understudy.web.scales import Scale
from understudy.web.tables import section

CURVES = {
    "train_loss": "loss on training sums",
    "held_out_loss": "loss on held-out sums",
    "restricted_loss": "restricted loss: key waves of the logits alone, all sums",
    "excluded_loss": "excluded loss: without the key waves, training sums",
}
LOOKS = {name: f"s{i}" for i, name in enumerate(CURVES)}
LEAST = 1e-7
"""Nats below which a curve is drawn along the floor."""


def page(points: Sequence[Point], keys: Sequence[int]) -> str:
    """All four curves over epochs, on a logarithmic axis of nats."""
    lines = [
        Line(said, [(float(p.epoch), max(getattr(p, name), LEAST)) for p in points], LOOKS[name])
        for name, said in CURVES.items()
    ]
    top = max(value for line in lines for _, value in line.points)
    x, y = Scale(0, float(points[-1].epoch)), Scale(LEAST, top, "log")
    last = ", ".join(f"{said} {getattr(points[-1], name):.2g}" for name, said in CURVES.items())
    chart = line_chart(lines, x, y, f"Nats a sum by epoch. At epoch {points[-1].epoch}: {last}", height=320)
    caption = tag("figcaption", "Nats a sum ", tag("span", "by epoch", class_="soft"))
    keyed = legend([(said, LOOKS[name]) for name, said in CURVES.items()])
    figure = tag("figure", caption, chart, class_="chart")
    lead = f"Key frequencies of the end of training: {', '.join(map(str, keys))}."
    title = "Modular addition through training"
    return document(title, tag("main", section("grokking", title, keyed, figure, lead=lead), id="main"))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("grokking.html"))
    args = parser.parse_args()
    with TerminalProgress() as progress:
        world = modular_addition(args.seed, progress)
    keys = world.truth.facts["key frequencies"]
    points = through_training(world.network, keys)
    print("epoch", "held-out right", *CURVES, sep="\t")
    for p in points:
        print(p.epoch, f"{p.held_out_right:.3f}", *(f"{getattr(p, name):.2g}" for name in CURVES), sep="\t")
    args.out.write_text(page(points, keys))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
