"""The networks that come with the package, read from their cards; no torch."""

import json
from dataclasses import dataclass
from pathlib import Path

DEMO_FOLDER = Path(__file__).parent / "demo"
DEFAULT_DEMO = "stdlib-2m"


@dataclass(frozen=True)
class NetworkCard:
    """A row of `understudy networks`."""

    name: str
    """What `open_network` takes."""
    family: str
    """`model_type` of its config; what is our own loses the prefix: gru, policy."""
    description: str
    parameters: int | None
    path: Path


def networks() -> tuple[NetworkCard, ...]:
    """The networks that need no download, the default first."""
    folders = [p.parent for p in sorted(DEMO_FOLDER.glob("*/config.json"))]
    return tuple(_card(f) for f in sorted(folders, key=lambda f: f.name != DEFAULT_DEMO))


def demo_path(alias: str) -> Path | None:
    """Folder of the demo network that `alias` names in full or by an unambiguous beginning; "" is the default."""
    names = [card.path.name for card in networks()]
    matches = [n for n in names if n == (alias or DEFAULT_DEMO)] or [n for n in names if n.startswith(alias or "?")]
    return DEMO_FOLDER / matches[0] if len(matches) == 1 else None


def _card(folder: Path) -> NetworkCard:
    card = _read(folder / "card.json")
    config = _read(folder / "config.json")
    name = "demo" if folder.name == DEFAULT_DEMO else f"demo:{folder.name}"
    description = str(card.get("what") or card.get("description") or folder.name)
    family = str(config.get("model_type", "unknown")).removeprefix("understudy-")
    return NetworkCard(name, family, description, card.get("parameters"), folder)


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}
