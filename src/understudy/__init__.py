"""Understudy: take a trained network apart into sparse features and run them in its place.

The names below load on first use, so that `import understudy` does not import torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "open_network": "workflows._opening", "AnyModule": "networks", "HFCausalLM": "networks",
    "open_data": "data", "find_sites": "core.names", "find_parts": "core.names",
    "Site": "core.site", "Tap": "core.tap", "Batch": "core.batch", "Network": "core.network", "Layout": "core.network",
    "Part": "core.network", "NamedSite": "core.network",
    "Latents": "core.latents", "Dictionary": "core.dictionary", "Group": "core.dictionary",
    "Replacement": "core.replacement", "Policy": "core.replacement",
    "SAE": "dictionaries", "Transcoder": "dictionaries", "SkipTranscoder": "dictionaries",
    "Crosscoder": "dictionaries", "CLTLayer": "dictionaries",
    "TopK": "sparsity", "BatchTopK": "sparsity", "MultiTopK": "sparsity", "GroupMax": "sparsity",
    "JumpReLU": "sparsity", "ReLU": "sparsity", "Gated": "sparsity", "Threshold": "sparsity",
    "TrainConfig": "workflows.train", "train": "workflows.train", "Trained": "workflows.train",
    "EvaluateConfig": "workflows.evaluate", "evaluate": "workflows.evaluate", "open_run": "workflows.evaluate",
    "score": "workflows.score", "ScoreConfig": "workflows.score",
    "AttributeConfig": "workflows.attribute", "attribute": "workflows.attribute", "Graph": "core.graph",
    "HolesConfig": "workflows.holes", "holes": "workflows.holes",
    "LadderConfig": "workflows.ladder", "ladder": "workflows.ladder",
    "AblateConfig": "workflows.ablate", "ablate": "workflows.ablate",
    "ScaleConfig": "workflows.scale", "scale": "workflows.scale",
    "FollowConfig": "workflows.follow", "follow": "workflows.follow",
    "RunConfig": "workflows.run", "run": "workflows.run", "RunnableGraph": "edits", "intervene": "edits",
    "ReportConfig": "workflows.report", "report": "workflows.report",
    "DemoConfig": "workflows.demo", "demo": "workflows.demo",
}  # fmt: skip

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'understudy' has no attribute {name!r}")
    return getattr(import_module(f"understudy.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
