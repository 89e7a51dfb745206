"""A grid small enough for seconds."""

from pathlib import Path
from typing import Any

import pytest


def tiny_grid(text: Path, folder: Path) -> dict[str, Any]:
    """Values of a GridConfig."""
    return {
        "network": "ladder:stdlib-0.1m", "site": "resid.1", "data": f"text:{text}", "context": 32, "batch": 256,
        "places": 4_000, "sequences": 12, "seeds": 1, "n_latents": 48, "out": folder / "grid",
    }  # fmt: skip


@pytest.fixture
def tiny(text, tmp_path) -> dict[str, Any]:
    return tiny_grid(text, tmp_path)
