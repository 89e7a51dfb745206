"""From an entry of a file to a `DictionarySpec` on a network: hooks become sites, widths are compared."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from understudy.core.dictionary import DictionarySpec
from understudy.core.network import Network
from understudy.core.records.errors import WrongShape
from understudy.core.site import Site
from understudy.formats._entry import Entry
from understudy.formats.hooks import Place, place


@dataclass(frozen=True)
class Fitted:
    """An entry whose hooks are sites of a network. Nothing but headers has been read."""

    entry: Entry
    read: Place
    writes: tuple[Site, ...]

    @property
    def reads(self) -> tuple[Site, ...]:
        return (self.read.site,)

    def spec(self) -> DictionarySpec:
        """Read the tensors. Raises BadWeights."""
        e = self.entry
        arrays = e.load()
        if self.read.scale is not None and self.read.center is not None:
            arrays |= {"in_center": self.read.center, "in_scale": self.read.scale}
        settings = {"sparsity": dict(e.rule), "d_reads": [e.d_in], "d_writes": [e.d_out] * len(self.writes)}
        return DictionarySpec(e.kind, self.reads, self.writes, settings, arrays)

    def bias(self) -> dict[Site, Tensor]:
        """The group's bias that this entry's file holds, by site."""
        return {} if self.entry.bias is None else {self.writes[0]: self.entry.bias()}


def fit(network: Network, entries: Sequence[Entry]) -> list[Fitted]:
    """Raises UnknownName for hooks that the network does not have, WrongShape for another network's widths."""
    fitted = [_placed(network, entry) for entry in entries]
    network.probe([site for f in fitted for site in (*f.reads, *f.writes)])
    for f in fitted:
        _check_widths(network, f)
    return fitted


def _placed(network: Network, entry: Entry) -> Fitted:
    read = place(network, entry.read, entry.read in entry.writes)
    written = [read if hook == entry.read else place(network, hook, True) for hook in entry.writes]
    if any(w.scale is not None for w in written):
        raise WrongShape(f"{entry.address} writes {entry.writes[0]}, inside a norm: that can be read, not replaced.")
    return Fitted(entry, read, tuple(w.site for w in written))


def _check_widths(network: Network, fitted: Fitted) -> None:
    e = fitted.entry
    for site, d in [(fitted.read.site, e.d_in), *((site, e.d_out) for site in fitted.writes)]:
        if network.width(site) != d:
            made_for = f" It says that it was made for {e.model}." if e.model else ""
            raise WrongShape(
                f"the dictionary {e.address} has width {d} at {site}, where {network.name} has "
                f"{network.width(site)}: it belongs to another network.{made_for}"
            )
