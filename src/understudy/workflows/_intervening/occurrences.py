"""What an intervention changes: latents at places, as nodes of a graph, and random latents in their stead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from understudy.core.dictionary import Dictionary, Group
from understudy.core.graph import Graph
from understudy.core.latents import Latents
from understudy.core.records.errors import BadInput
from understudy.core.records.metric import NotMeasured
from understudy.core.replacement import EditLatents, Recording
from understudy.edits.graph_groups import owners
from understudy.edits.interventions import NamedEdit


@dataclass(frozen=True)
class Occurrence:
    """One latent at one place of the input, and what its value is changed by."""

    member: Dictionary
    place: int
    latent: int
    old: float
    delta: float


def occurrences(edits: Mapping[Dictionary, NamedEdit], recording: Recording) -> list[Occurrence]:
    """What the changes do to the latents of a clean pass. Raises BadInput for a module that is called over time."""
    out = []
    for member, edit in edits.items():
        if (member, 1) in recording.latents:
            raise BadInput(
                f"{member.writes[0]} is called for one place at a time, and a change there is carried on: what it "
                "alters at later places is no change of a clean pass, so there is nothing to compare it with. Use "
                "dictionaries of what the module gives out as a whole, or understudy.edits.intervene, which runs such "
                "a change."
            )
        z = recording.latents[member, 0]
        old = {(r, i): v for r, i, v in zip(z.rows.tolist(), z.ids.tolist(), z.values.tolist(), strict=True)}
        delta = edit(z).minus(z)
        for place, latent, value in zip(delta.rows.tolist(), delta.ids.tolist(), delta.values.tolist(), strict=True):
            out.append(Occurrence(member, place, latent, old.get((place, latent), 0.0), value))
    return out


def as_nodes(graph: Graph, groups: Sequence[Group], found: Sequence[Occurrence]) -> dict[int, float] | NotMeasured:
    """By node, the change as a share of its value; NotMeasured where a latent that is changed has no node."""
    number = {id(d): i for i, d in owners(graph, groups).items()}
    nodes = graph.nodes
    on = (nodes.where("latent") & (nodes.value > nodes.threshold)).nonzero().squeeze(-1)
    columns = (nodes.dictionary[on].tolist(), nodes.place[on].tolist(), nodes.latent[on].tolist(), on.tolist())
    known = {(d, p, i): node for d, p, i, node in zip(*columns, strict=True)}
    keys = [(number[id(o.member)], o.place, o.latent) for o in found]
    lacking = [f"{graph.card.dictionaries[d].name or d}/{i}@{p}" for d, p, i in keys if (d, p, i) not in known]
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        said = "is no node of the graph" if len(lacking) == 1 else "are no nodes of the graph"
        return NotMeasured(not_measured=f"{', '.join(lacking[:3])}{more} {said}: silent there, or beyond its limit")
    return {known[key]: o.delta / o.old for key, o in zip(keys, found, strict=True)}


def random_instead(
    found: Sequence[Occurrence], recording: Recording, generator: torch.Generator
) -> dict[Dictionary, EditLatents]:
    """For each occurrence another latent of its dictionary at its place, changed so that what is written changes by as
    much (the length of the change, over all sites). Drawn from latents that are on there, else from all."""
    out: dict[Dictionary, EditLatents] = {}
    for member in dict.fromkeys(o.member for o in found):
        own = [o for o in found if o.member is member]
        z = recording.latents[member, 0]
        taken = {(o.place, o.latent) for o in own}
        rows, ids, values = [], [], []
        for o in own:
            on = {int(i): float(v) for i, v in zip(*_at(z, o.place), strict=True)}
            free = [i for i in on if (o.place, i) not in taken]
            if not free:
                free = [i for i in range(member.n_latents) if (o.place, i) not in taken]
            if not free:
                continue
            chosen = free[int(torch.randint(len(free), (1,), generator=generator))]
            taken.add((o.place, chosen))
            size = abs(o.delta) * length(member, o.latent) / max(length(member, chosen), 1e-30)
            rows.append(o.place)
            ids.append(chosen)
            values.append(on.get(chosen, 0.0) + (size if o.delta > 0 else -size))
        out[member] = _put(torch.tensor(rows), torch.tensor(ids), torch.tensor(values))
    return out


def length(member: Dictionary, latent: int) -> float:
    """Of what one unit of a latent writes, over all sites."""
    device = next((t.device for t in (*member.parameters(), *member.buffers())), torch.device("cpu"))
    atoms = member.atoms(torch.tensor([latent], device=device)).values()
    return float(sum((a.double().square().sum() for a in atoms), torch.zeros(())).sqrt())


def _at(z: Latents, place: int) -> tuple[list[int], list[float]]:
    part = slice(int(z.offsets[place]), int(z.offsets[place + 1]))
    return z.ids[part].tolist(), z.values[part].tolist()


def _put(rows: Tensor, ids: Tensor, values: Tensor) -> EditLatents:
    def edit(z: Latents) -> Latents:
        return z.put(rows.to(z.ids.device), ids.to(z.ids.device), values.to(z.values))

    return edit
