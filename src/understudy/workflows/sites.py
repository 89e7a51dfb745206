"""`sites`: every named site of a network, with where it is and what it holds."""

from understudy.core.records.config import Config
from understudy.core.records.metric import Record
from understudy.workflows._opening import open_network


class SitesConfig(Config):
    """What to list."""

    network: str = "demo"
    """demo, demo:NAME, organism:NAME, hf:ORG/NAME, hf:PATH or py:package.module:function."""


class SiteRow(Record):
    """One site."""

    name: str
    path: str
    axes: tuple[str, ...]
    width: int
    part: str = ""
    """The part (a module that a transcoder can replace) that reads or writes here."""


def list_sites(config: SitesConfig) -> list[SiteRow]:
    """Named sites in forward order. Raises UnknownName for the network."""
    network = open_network(config.network)
    parts = {p.read: f"{p.name} reads" for p in network.parts()} | {
        p.write: f"{p.name} writes" for p in network.parts()
    }
    return [
        SiteRow(name=s.name, path=str(s.site), axes=s.layout.axes, width=s.layout.width, part=parts.get(s.site, ""))
        for s in network.named_sites()
    ]
