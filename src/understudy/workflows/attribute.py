"""`attribute`: the computation graph of one input - which features make which, by how much, and how true that is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from understudy.attribution import Limits, LocalPass, Target, build, plan
from understudy.attribution.plan import size
from understudy.attribution.sources import Sources
from understudy.baselines import NeuronBasis
from understudy.core.batch import Batch
from understudy.core.dictionary import Group
from understudy.core.fingerprint import dictionary_fingerprint, network_fingerprint
from understudy.core.graph import Graph
from understudy.core.names import find_parts
from understudy.core.network import Network
from understudy.core.records.config import Config
from understudy.core.records.errors import BadFolder, BadInput, TooLarge
from understudy.core.records.graph import DictionaryCard, GraphCard
from understudy.core.records.progress import SILENT, Progress
from understudy.data.packing import separator_of
from understudy.workflows._attributing.resuming import kept_rows, question
from understudy.workflows._attributing.targets import chosen_targets
from understudy.workflows._data import open_sequences
from understudy.workflows._opening import open_network
from understudy.workflows.evaluate import open_run


class AttributeConfig(Config):
    """What to explain, from what, and how much of it to keep."""

    run: str = ""
    """Folder of a finished run (or of a score) whose dictionaries are the nodes; without one, the network's neurons."""
    network: str | None = None
    """Needed without a run, and for runs whose network is code (py:...)."""
    sites: str = "mlp"
    """Without a run: the parts whose neurons become nodes."""
    input: str = "@0"
    """Text, or @N for held-out sequence N."""
    context: PositiveInt | None = None
    """Only so many places of the input."""
    target: str = "top"
    """top (likely outputs), a token, `A - B` (difference), #N (output N), a latent: mlp.3/174 or mlp.3/174@12."""
    at: int = -1
    """Place whose output is explained; -1 is the last."""
    nodes: PositiveInt = 8192
    """Latents that get a row of edges, the most influential first; the rest is folded into remainders."""
    edges: PositiveInt = 512
    """Edges kept in a row, the largest; the rest is folded into its remainder."""
    silent: NonNegativeInt = 0
    """Latents just below their threshold shown at each place and dictionary, with what held them down."""
    method: Literal["exact", "ig"] = "exact"
    """exact: the network made linear at this input by freezing; ig: integrated gradients, where no rule exists."""
    steps: PositiveInt = 16
    """Points on the path of integrated gradients."""
    check: NonNegativeInt = 32
    """Latents removed from the live network to compare edges with what happens; 0 leaves it out."""
    batch: PositiveInt = 64
    """Rows in one backward pass; fewer for long inputs, halved where memory runs out."""
    max_memory: PositiveFloat | None = None
    """GiB that making the graph may take beyond the network; a plan for more is refused before work begins."""
    seed: int = 0
    """Decides which sources the checks remove."""
    out: Path = Path("graph.acg")
    """Folder of the graph. While it is made, finished rows are kept beside it in OUT.part: after a kill or Ctrl-C the
    same command carries on."""


@dataclass(frozen=True)
class Question:
    """A network, the groups whose latents are nodes, and where they come from."""

    network: Network
    groups: list[Group]
    run: str | None
    data: str
    skip_first: int = 0
    """Places at the start that keep the network's own activations: they have no latents, only errors."""


def attribute(
    config: AttributeConfig, progress: Progress = SILENT, network: Network | None = None, batch: Batch | None = None
) -> Graph:
    """The graph, also saved to `config.out`. network, batch: objects of yours in place of what the config names.

    Raises BadInput and its kin; UnknownOperation where the network does what no rule makes linear; AcausalReplacement.
    """
    if config.out.exists():
        raise BadFolder(f"{config.out} exists already: choose another --out.")
    asked = open_question(config, network)
    given = batch if batch is not None else open_input(config, asked)
    local = LocalPass(asked.network, asked.groups, given)
    limits = Limits(config.nodes, config.edges, config.batch, config.silent)
    sources = Sources(local, limits.silent)
    planned = plan(local, sources, limits)
    progress.say(str(planned))
    if config.max_memory is not None and planned.memory_bytes > config.max_memory * 2**30:
        raise TooLarge(
            f"this graph takes up to {size(planned.memory_bytes)}, more than --max-memory {config.max_memory:g} GiB: "
            "ask for fewer --nodes or --edges, a smaller --batch, or a shorter --context."
        )

    def targets(sources: Sources) -> list[Target]:
        return chosen_targets(asked.network, sources, config.target, config.at, asked.network.tokenizer)

    card = card_of(asked, given)
    with kept_rows(config.out, question(config, card, given), progress) as journal:
        steps = config.steps if config.method == "ig" else 0
        made = build(local, targets, card, limits, steps, config.seed, progress, journal, sources)
        if config.check:
            made = made.check(config.check, config.seed, progress)
        made.graph.save(config.out)
        journal.remove()
    progress.say(f"graph written to {config.out}")
    return made.graph


def open_question(config: AttributeConfig, network: Network | None = None) -> Question:
    """The run's dictionaries, or the network's own neurons where there is no run."""
    if config.run:
        run = open_run(config.run, network or config.network)
        return Question(run.network, run.groups, config.run, run.config.data, run.skip_first)
    if network is None and config.network is None:
        raise BadInput("name a run (understudy attribute RUN) or a network (--network demo, whose neurons are nodes).")
    opened = network or open_network(str(config.network))
    groups = []
    for part in find_parts(opened, config.sites):
        own = opened.neurons(part)
        if own is None:
            raise BadInput(
                f"{part.name} of {opened.name} has no neurons of the form activation @ W + bias: pass a run."
            )
        groups.append(Group([NeuronBasis(own.site, part.write, own.W, own.bias)]))
    return Question(opened, groups, None, "stdlib")


def open_input(config: AttributeConfig, asked: Question) -> Batch:
    """One sequence. Raises BadInput if it is empty or longer than the network's context."""
    network = asked.network
    if config.input.startswith("@"):
        if not config.input[1:].isdecimal():
            raise BadInput(f"--input {config.input}: @N names held-out sequence N, e.g. @3; or give text.")
        sequences = open_sequences(network, asked.data, "held_out", None, 200_000)
        number = int(config.input[1:])
        if number >= len(sequences):
            raise BadInput(f"--input {config.input}: there are {len(sequences)} held-out sequences, from @0.")
        batch = sequences.batch(slice(number, number + 1))
    else:
        batch = _text(network, config.input)
    batch = batch.skipping(asked.skip_first)
    return batch if config.context is None else _cut(batch, config.context)


def _text(network: Network, text: str) -> Batch:
    if network.tokenizer is None:
        raise BadInput(f"{network.name} has no tokenizer: name a held-out sequence (--input @0) or pass a batch.")
    ids = network.tokenizer(text, add_special_tokens=False)["input_ids"]
    opening = separator_of(network.tokenizer)
    ids = ([] if opening is None else [opening]) + list(ids)
    if not text or not ids:
        raise BadInput("--input is empty: there is nothing to explain.")
    if len(ids) > network.max_context:
        raise BadInput(
            f"--input has {len(ids)} tokens, more than the {network.max_context} {network.name} was made for."
        )
    given = torch.tensor([ids], device=network.device)
    return Batch({"input_ids": given}, mask=torch.ones_like(given, dtype=torch.bool))


def _cut(batch: Batch, n: int) -> Batch:
    """The first n places of every tensor that has a second axis."""

    def short(x: Tensor | None) -> Tensor | None:
        return x[:, :n] if x is not None and x.dim() > 1 else x

    inputs = {k: v[:, :n] if v.dim() > 1 else v for k, v in batch.inputs.items()}
    return Batch(inputs, mask=short(batch.mask), targets=short(batch.targets))


def card_of(asked: Question, batch: Batch) -> GraphCard:
    """Where a graph of one input comes from."""
    network, names = asked.network, {p.write: p.name for p in asked.network.parts()}
    ids = batch.inputs.get("input_ids")
    tokens = (
        [] if ids is None or network.tokenizer is None else [network.tokenizer.decode([i]) for i in ids[0].tolist()]
    )
    first = next(iter(batch.inputs.values()))
    return GraphCard(
        network=network.name,
        network_fingerprint=network_fingerprint(network),
        run=asked.run,
        dictionaries=[
            DictionaryCard(
                kind=m.kind,
                reads=[str(s) for s in m.reads],
                writes=[str(s) for s in m.writes],
                n_latents=m.n_latents,
                fingerprint=dictionary_fingerprint(m),
                name=names.get(m.writes[0], ""),
            )
            for g in asked.groups
            for m in g.members
        ],
        sites=[],
        inputs={} if ids is None else {"input_ids": ids[0].tolist()},
        tokens=tokens,
        shape=tuple(first.shape[1:2]),
        targets=[],
    )
