"""Rows of training data that fills, refits and error models are fitted on."""

from collections.abc import Iterable

import torch
from torch import Tensor

from understudy.core.batch import Sequences
from understudy.core.dictionary import Acts
from understudy.core.network import Network
from understudy.core.records.progress import Progress
from understudy.core.site import Site
from understudy.data import Order

FIT_PLACES = 32_768
"""Rows to fit on, at least; more for sites wider than a 20th of this."""
BATCH = 16


def training_rows(network: Network, sequences: Sequences, sites: Iterable[Site], seed: int, progress: Progress) -> Acts:
    """Activations of the network itself at `sites`, [n, d] each, of counted places only."""
    sites = tuple(dict.fromkeys(sites))
    parts: dict[Site, list[Tensor]] = {s: [] for s in sites}
    needed = max(FIT_PLACES, 20 * max(network.width(s) for s in sites))
    picked = Order(len(sequences), seed).stream(0, len(sequences))
    with progress.task("training data to fit on", needed, "places") as task:
        for i in range(0, len(picked), BATCH):
            batch = sequences.batch(picked[i : i + BATCH]).to(network.device)
            for site, value in network.record(batch, sites).items():
                real = torch.ones(value.shape[:-1], dtype=torch.bool, device=value.device)
                if batch.mask is not None and batch.mask.shape == real.shape:
                    real = batch.mask
                parts[site].append(value[real].float())
            n = sum(map(len, parts[sites[0]]))
            task.update(min(n, needed))
            if n >= needed:
                break
    return {s: torch.cat(v) for s, v in parts.items()}
