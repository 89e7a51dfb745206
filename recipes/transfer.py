"""The tables of docs/guide/transfer.md: which conclusions carry over, on every network that comes along.

    python recipes/transfer.py --out runs/transfer        # resumes; about 100 core-minutes
    python recipes/transfer.py --out runs/transfer --done # writes what is finished, trains nothing

Writes benchmarks/results/transfer.json and prints the rows of the tables; a test holds the guide to them.
"""

import argparse
from pathlib import Path

from understudy.core.records.metric import Measured, Metric
from understudy.core.records.transfer import Row, Transfer
from understudy.workflows.transfer import CLAIMS, TransferConfig, card, transfer

NETWORKS = (
    "demo:digits-vit", "demo:digits-cnn", "organism:synthetic", "demo:lander", "ladder:stdlib-0.8m", "demo:gru",
    "demo:mamba2", "demo",
)  # fmt: skip
PLACES = 150_000
RESULT = Path(__file__).parents[1] / "benchmarks" / "results" / "transfer.json"


def finished(out: Path) -> Transfer:
    """The rows that are there, in the order of the networks."""
    rows = [Row.model_validate_json(path.read_text()) for path in sorted(out.glob("*/*/row.json"))]
    rows.sort(key=lambda r: NETWORKS.index(r.network))
    config = TransferConfig.from_yaml(out / "config.yaml")
    claims = [card(CLAIMS[name]) for name in config.claims.split(",") if any(r.claim == name for r in rows)]
    return Transfer(
        claims=claims, rows=rows, l0=config.l0, width=config.width, places=config.places, seeds=config.seeds
    )


def cell(metric: Metric, digits: int) -> str:
    if not isinstance(metric, Measured):
        return "not measured"
    value, low, high = (f"{round(x, digits) + 0.0:.{digits}f}" for x in (metric.value, metric.low, metric.high))
    return f"{value} [{low}, {high}]"


def line(row: Row) -> str:
    """A row of the guide's table."""
    controls = ", ".join(cell(a.control, 3) for a in row.arms[:2])
    defects = " | ".join(cell(a.defect, 3) for a in row.arms)
    return f"| `{row.network}` {row.site} | {defects} | {cell(row.removed, 2)} | {controls} | {row.verdict} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--done", action="store_true", help="write what is finished, train nothing")
    args = parser.parse_args()
    if not args.done:
        resume = (args.out / "config.yaml").exists()
        transfer(TransferConfig(networks=NETWORKS, places=PLACES, out=args.out, resume=resume))
    made = finished(args.out)
    RESULT.write_text(made.model_dump_json(indent=1) + "\n")
    for claim in made.claims:
        print(claim.sentence, *(line(row) for row in made.of(claim.name)), sep="\n")


if __name__ == "__main__":
    main()
