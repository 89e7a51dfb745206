"""Networks by name, and adapters for any module. Listing them does not import torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from understudy.networks.listing import NetworkCard as NetworkCard
from understudy.networks.listing import networks as networks
from understudy.networks.rungs import Rung as Rung
from understudy.networks.rungs import rungs as rungs

if TYPE_CHECKING:
    from understudy.networks.any_module import AnyModule as AnyModule
    from understudy.networks.hf_causal_lm import HFCausalLM as HFCausalLM
    from understudy.networks.hf_causal_lm import next_tokens as next_tokens
    from understudy.networks.opening import open_network as open_network

_HOMES = {
    "AnyModule": "any_module",
    "HFCausalLM": "hf_causal_lm",
    "next_tokens": "hf_causal_lm",
    "open_network": "opening",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'understudy.networks' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
