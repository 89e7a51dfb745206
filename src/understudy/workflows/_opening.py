"""What `--network` names: any network of the networks shelf, or an organism."""

import re

import torch

from understudy import networks
from understudy.core.network import Network
from understudy.core.records.errors import BadInput, UnknownName
from understudy.core.records.progress import SILENT, Progress
from understudy.core.world import World
from understudy.networks.opening import find_device
from understudy.organisms import ORGANISMS, make_organism

SCHEME = "organism"
_ORGANISM = re.compile(r"(?P<name>[^@]+)(@(?P<seed>\d+))?")


def open_network(
    spec: str, dtype: str | torch.dtype | None = None, device: str | None = None, progress: Progress = SILENT
) -> Network:
    """The network that `spec` names, in eval mode: as `understudy.networks.open_network` takes it, or
    `organism:NAME[@SEED]` (see `understudy organisms`; seed 0 by default), with the organism's own data.

    Organisms whose weights are trained are trained when first asked for, up to two minutes, and then cached. Raises as
    `understudy.networks.open_network`; UnknownName for an organism or a seed that is none, BadInput for a dtype of an
    organism other than float32.
    """
    scheme, _, rest = spec.partition(":")
    if scheme != SCHEME:
        return networks.open_network(spec, dtype, device)
    where = None if device is None else find_device(device)
    network = _organism(spec, rest, progress)
    if dtype not in (None, "auto", "float32", torch.float32):
        raise BadInput(f"{spec} is a float32 network, whose truth is not about {dtype} weights. Leave the dtype out.")
    return network if where is None else network.to(where)


def open_world(name: str, seed: int = 0, progress: Progress = SILENT) -> World:
    """An organism by name, with the network that it starts from where it starts from one. Raises UnknownName."""
    base = ORGANISMS[name].base if name in ORGANISMS else ""
    return make_organism(name, seed, progress, base=networks.open_network(base) if base else None)


def _organism(spec: str, rest: str, progress: Progress) -> Network:
    asked = _ORGANISM.fullmatch(rest)
    if asked is None:
        raise UnknownName(f"{spec}: write organism:NAME or organism:NAME@SEED, e.g. organism:sort@3; a seed is digits.")
    if asked["name"] not in ORGANISMS:
        raise UnknownName.among("organism", asked["name"], ORGANISMS, "`understudy organisms` lists them.")
    network = open_world(asked["name"], int(asked["seed"] or 0), progress).network
    network.name = spec  # runs keep it, and open it again by it
    return network
