"""`ladder`: networks of known training compute on the same text, and the compute that a loss is worth."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from pydantic import PositiveInt

from understudy.core.network import Network
from understudy.core.records.config import Config
from understudy.core.records.errors import BadData, BadInput
from understudy.core.records.ladder import LadderCard, LadderRow
from understudy.core.records.metric import Metric, NotMeasured
from understudy.core.records.progress import SILENT, Progress, Task
from understudy.data import Order, open_data, pack, tokenise
from understudy.data.documents import Document
from understudy.metrics import Bootstrap, equivalent_compute, power_law
from understudy.networks import rungs
from understudy.workflows._data import DEFAULT_CONTEXT, n_skipped
from understudy.workflows._judging.rungs import row_losses
from understudy.workflows._opening import open_network
from understudy.workflows.train import count

WIDE_GAP = 10
"""Times the compute of the rung below: beyond it the bend of a true law is missed by more than a few per cent."""
SEARCHED = 4096
"""Documents of an endless source that the ones to read are drawn from."""


class LadderConfig(Config):
    """What to climb, and on what text."""

    network: str | None = None
    """A network to place on the ladder: its loss, and the compute at which the ladder reaches that."""
    rungs: str | None = None
    """A family of your own in place of the one that comes with the package: NAME=FLOPS or NAME@TOKENS, separated by
    commas, e.g. hf:EleutherAI/pythia-70m@300B. From tokens, FLOPs are 6 x parameters x tokens."""
    checkpoints: bool = False
    """Show the un-annealed checkpoints too; no fit uses them."""
    data: str = "stdlib"
    """Text to read: stdlib, text:FILE_OR_FOLDER_OR_GLOB or hf:DATASET[:SPLIT]; the held-out part."""
    documents: PositiveInt = 32
    """Documents read; intervals rest on them."""
    characters: PositiveInt = 6000
    """Characters read of each, from its start."""
    context: PositiveInt | None = None
    """Tokens a row, the same for every network; by default 256."""
    seed: int = 0
    """Decides which documents, and the bootstrap's resamples."""
    page: Path | None = None
    """Also write the ladder as one HTML file that needs nothing else."""


@dataclass(frozen=True)
class Asked:
    """A rung as it was asked for: compute, or tokens from which it follows."""

    name: str
    flops: float | None = None
    tokens: int | None = None
    is_annealed: bool = True


@dataclass(frozen=True)
class Read:
    """A network that has read the documents."""

    parameters: int
    nats: np.ndarray
    """Loss summed over each document."""
    n_bytes: np.ndarray
    """Bytes of each document that its scored tokens account for."""


def ladder(config: LadderConfig, progress: Progress = SILENT) -> LadderCard:
    """Score every rung on the same documents, per byte, so that rungs may have tokenizers of their own."""
    asked = _asked(config)
    documents = _documents(config)
    names = [a.name for a in asked] + ([config.network] if config.network else [])
    read: dict[str, Read] = {}
    with progress.task("climbing the ladder", len(names), "networks") as task:
        for i, name in enumerate(dict.fromkeys(names)):
            read[name] = _read(open_network(name), documents, config.context or DEFAULT_CONTEXT)
            task.update(i + 1, name)
    bootstrap = Bootstrap(len(documents), config.seed)
    rows = sorted((_row(a, read[a.name], bootstrap) for a in asked), key=lambda row: row.flops)
    fitted = [row for row in rows if row.is_annealed]
    flops = np.array([row.flops for row in fitted])
    bits, n_bytes = (np.stack([x(read[row.name]) for row in fitted]) for x in (_bits, lambda r: r.n_bytes))
    law = power_law(bootstrap, bits, flops, n_bytes)
    return LadderCard(
        data=f"{config.data} (held out)",
        documents=len(documents),
        bytes=sum(d.n_bytes for d in documents),
        rungs=rows,
        doubling=law if isinstance(law, NotMeasured) else law.doubling,
        misfit=law if isinstance(law, NotMeasured) else law.misfit,
        notes=_gaps(fitted),
        **_placed(config.network, read, bits, n_bytes, flops, bootstrap),
    )


def _placed(
    name: str | None, read: dict[str, Read], bits: np.ndarray, n_bytes: np.ndarray, flops: np.ndarray, b: Bootstrap
) -> dict:
    if name is None:
        return {}
    own = read[name]
    compute: Metric = equivalent_compute(b, _bits(own), bits, flops, own.n_bytes, n_bytes)
    return {
        "network": name,
        "bits_per_byte": b.ratio(_bits(own), own.n_bytes, "bits per byte"),
        "equivalent_compute": compute,
    }


def _row(asked: Asked, read: Read, bootstrap: Bootstrap) -> LadderRow:
    flops = asked.flops if asked.flops is not None else 6.0 * read.parameters * (asked.tokens or 0)
    bits = bootstrap.ratio(_bits(read), read.n_bytes, "bits per byte")
    return LadderRow(
        name=asked.name, parameters=read.parameters, tokens=asked.tokens, flops=flops, is_annealed=asked.is_annealed,
        bits_per_byte=bits,
    )  # fmt: skip


def _gaps(fitted: Sequence[LadderRow]) -> list[str]:
    """A line for each pair of neighbours that are far apart: what is read off between them leans on one chord."""
    return [
        f"{a.name} and {b.name} are {b.flops / a.flops:.0f} times apart: what is read off between them may be too large"
        for a, b in pairwise(fitted)
        if b.flops > WIDE_GAP * a.flops
    ]


def _bits(read: Read) -> np.ndarray:
    return read.nats / math.log(2)


def _asked(config: LadderConfig) -> list[Asked]:
    """Raises BadInput for a rung without compute, or for fewer than 2."""
    if config.rungs is None:
        found = [*rungs(), *(rungs(annealed=False) if config.checkpoints else ())]
        asked = [Asked(r.name, r.flops, r.tokens, r.is_annealed) for r in found]
    else:
        asked = [_parsed(text.strip()) for text in config.rungs.split(",")]
    if len({a.name for a in asked if a.is_annealed}) < 2:
        given = ", ".join(a.name for a in asked) or "none"
        raise BadInput(f"a ladder needs at least 2 rungs, of different compute; there is {given}.")
    return asked


def _parsed(text: str) -> Asked:
    found = re.fullmatch(r"(.+)([=@])([^=@]+)", text)
    if not found:
        raise BadInput(
            f"{text!r} does not say what its training cost: write NAME=FLOPS (hf:A=6e20) or NAME@TOKENS (hf:A@300B)."
        )
    name, sign, amount = found.groups()
    try:
        value = float(count(amount) if sign == "@" else amount)
    except ValueError:
        raise BadInput(
            f"{amount!r} (in {text!r}) is not a number; e.g. 6e20 FLOPs after =, 300B tokens after @."
        ) from None
    if not (value > 0 and math.isfinite(value)):
        raise BadInput(f"{text!r}: compute must be above 0.")
    return Asked(name, value) if sign == "=" else Asked(name, tokens=round(value))


def _documents(config: LadderConfig) -> list[Document]:
    source = open_data(config.data, "held_out")
    found: list[Document] = []
    for document in source:
        if document.text.strip():
            found.append(document)
        if len(found) >= SEARCHED:
            break
    if len(found) < 2:
        raise BadData(f"{config.data} gives {len(found)} held-out documents; intervals need at least 2.")
    picked = Order(len(found), config.seed).stream(0, min(config.documents, len(found)))
    return [found[int(i)].cut(0, config.characters) for i in picked]


def _read(network: Network, documents: Sequence[Document], context: int) -> Read:
    """Loss and bytes of each document, in rows of the network's own tokens."""
    if network.tokenizer is None:
        raise BadData(f"{network.name} has no tokenizer, so it cannot read text.")
    if context > network.max_context:
        raise BadData(
            f"rows of {context} tokens are more than the {network.max_context} that {network.name} was made for: "
            f"pass --context {network.max_context}, which all rungs then share."
        )
    packed = pack(
        tokenise(documents, network.tokenizer), context, opening=network.opening, skip_first=n_skipped(network, None)
    )
    if packed.n_bytes is None:
        raise BadData(
            f"{network.name}: its tokenizer does not say which bytes each token is; ladders compare per byte."
        )
    rows = torch.arange(len(packed))
    nats = row_losses(network, packed, rows, Task())
    scored, document = packed.scored_bytes(rows), packed.document.long()
    real = document >= 0
    n_parameters = sum(p.numel() for p in network.module.parameters())
    sums = [torch.zeros(len(documents), dtype=torch.float64) for _ in range(2)]
    for total, values in zip(sums, (nats, scored), strict=True):
        total.index_add_(0, document[real], values[real].double())
    return Read(n_parameters, sums[0].numpy(), sums[1].numpy())
