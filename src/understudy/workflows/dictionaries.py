"""`dictionaries`: public dictionaries by name, with the network each belongs to."""

from understudy.core.records.config import Config
from understudy.core.records.errors import UnknownName
from understudy.formats import KNOWN, Known, known_for


class DictionariesConfig(Config):
    """What to list."""

    network: str = ""
    """Part of a network's name, e.g. gemma-2-2b; empty: all."""


def list_dictionaries(config: DictionariesConfig) -> list[Known]:
    """Known public dictionaries. Raises UnknownName where none is known for the network."""
    rows = known_for(config.network)
    if not rows:
        networks = list(dict.fromkeys(row.network for row in KNOWN))
        raise UnknownName.among("network with public dictionaries in this list", config.network, networks)
    return rows
