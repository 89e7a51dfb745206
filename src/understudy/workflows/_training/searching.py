"""How a run finds the latents it keeps: by an fp32 product, or among candidates of one in few bits."""

from typing import TYPE_CHECKING

import torch

from understudy.core.latents import Search
from understudy.core.narrow import multiplies_int8
from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import BadInput

if TYPE_CHECKING:
    from understudy.workflows.train import TrainConfig

RULES = ("topk", "multi_topk", "batch_topk", "jumprelu")
"""That keep few latents of many, and say which by values alone."""
WORTH = 8192
"""Latents from which on candidates cost less than an fp32 product, at every width that was timed."""
SPARSE = 64
"""Latents for each that is kept, by rules with thresholds: with fewer, too many blocks hold one that can be above."""


def check_search(config: "TrainConfig") -> None:
    """Raises BadInput."""
    if config.search in ("bf16", "int8") and config.sparsity not in RULES:
        raise BadInput(
            f"--search {config.search} finds few latents among many: it is for {', '.join(RULES)}, not for "
            f"{config.sparsity}."
        )


def search_of(config: "TrainConfig", device: torch.device) -> Search:
    """What was asked for; of `auto` int8 for many latents on a processor that multiplies int8 itself, else fp32."""
    if config.search != "auto":
        return config.search
    least = WORTH if config.sparsity in ("topk", "multi_topk") else max(WORTH, SPARSE * config.k)
    many = config.n_latents >= least and config.sparsity in RULES
    return "int8" if many and device.type == "cpu" and multiplies_int8() else "fp32"


def keep_search(folder: RunFolder, saved: "TrainConfig", search: str) -> None:
    """What a resumed run searches by from here on, in its configuration."""
    if search != saved.search or "search" not in saved.model_fields_set:
        folder.write_text("config.yaml", saved.model_copy(update={"search": search}).to_yaml())
