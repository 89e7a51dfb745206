"""The ladder: networks of one family whose training compute is known, read from their cards; no torch."""

import json
from dataclasses import dataclass
from pathlib import Path

from understudy.networks.listing import DEFAULT_DEMO, DEMO_FOLDER

LADDER_FOLDER = Path(__file__).parent / "ladder"


@dataclass(frozen=True)
class Rung:
    """A network and what its training cost."""

    name: str
    """What `open_network` takes."""
    parameters: int
    tokens: int
    """Tokens it was trained on, repeats counted."""
    flops: float
    """6 x parameters x tokens."""
    is_annealed: bool
    """False for weights saved in the middle of a run, which are worse than what their compute buys."""
    path: Path


def rungs(annealed: bool = True) -> tuple[Rung, ...]:
    """The ladder that comes with the package, in the order of compute; the demo network is one of its rungs.

    annealed: False gives the un-annealed checkpoints instead.
    """
    folders = [DEMO_FOLDER / DEFAULT_DEMO, *(p.parent for p in LADDER_FOLDER.glob("*/card.json"))]
    found = (_rung(folder) for folder in folders if (folder / "card.json").is_file())
    return tuple(sorted((r for r in found if r.is_annealed == annealed), key=lambda r: r.flops))


def rung_path(name: str) -> Path | None:
    """Folder of the rung or checkpoint that `ladder:NAME` names."""
    folder = LADDER_FOLDER / name
    return folder if name and folder.parent == LADDER_FOLDER and (folder / "config.json").is_file() else None


def _rung(folder: Path) -> Rung:
    card = json.loads((folder / "card.json").read_text())
    training = card["training"]
    name = "demo" if folder.parent == DEMO_FOLDER else f"ladder:{folder.name}"
    whole = "checkpoint_of" not in training
    return Rung(name, card["parameters"], training["tokens"], float(training["flops"]), whole, folder)
