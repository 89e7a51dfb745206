"""Networks whose mechanism we planted, so that methods can be scored against the truth. Listing them needs no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from understudy.organisms.listing import ORGANISMS as ORGANISMS
from understudy.organisms.listing import OrganismCard as OrganismCard

if TYPE_CHECKING:
    from understudy.organisms.opening import make_organism as make_organism
    from understudy.organisms.opening import open_organism as open_organism
    from understudy.organisms.opening import save_organism as save_organism

_HOMES = dict.fromkeys(("make_organism", "open_organism", "save_organism"), "opening")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'understudy.organisms' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
