"""`networks`: what comes with the package."""

from dataclasses import asdict
from typing import Any

from understudy.core.records.config import Config
from understudy.networks import networks


class NetworksConfig(Config):
    """Nothing to choose."""


def list_networks(config: NetworksConfig) -> list[dict[str, Any]]:
    """Rows with `name`, `family`, `description`, `parameters`."""
    return [asdict(card) | {"path": str(card.path)} for card in networks()]
