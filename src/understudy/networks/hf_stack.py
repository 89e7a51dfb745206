"""What models of transformers with a stack of blocks share: their sites, parts and neurons, found by probing."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from understudy.core.batch import Batch
from understudy.core.network import Calls, NamedSite, Network, Neurons, Part
from understudy.core.records.errors import UnderstudyError, WrongShape
from understudy.core.site import Site
from understudy.networks._structure import Block, Child, analyse, block_paths, last_matrix, matrix


class HFStack(Network):
    """A transformers model whose largest stack of blocks passes a stream [batch, place, d] on.

    A subclass gives `example`, `forward` and what its behaviour is.
    """

    _places: tuple[int, int]
    """Batch and places of the example; numbers that no width or number of heads is likely to equal."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__(module, name)
        self.config: Any = module.config
        text = getattr(self.config, "get_text_config", lambda: self.config)()
        self.unsure_writes: frozenset[int] = frozenset()
        self._block_paths = block_paths(module, getattr(text, "num_hidden_layers", None))

    def _forward(self, batch: Batch) -> Any:
        """The module's own output, without the checks that a subclass's `forward` makes."""
        return self.forward(batch)

    def axes(self, site: Site, value: Tensor) -> tuple[tuple[str, ...], Calls]:
        b, p = self._places
        shape = tuple(value.shape)
        if value.dim() == 3 and shape[:2] == (b, p):
            return ("batch", "pos", "d"), "depth"
        if value.dim() == 3 and shape[0] == b and shape[2] == p:
            return ("batch", "d", "pos"), "depth"
        if value.dim() == 2 and shape[0] == b * p:
            return ("row", "d"), "depth"
        if value.dim() == 4 and shape[:2] == (b, p):
            return ("batch", "pos", "head", "d"), "depth"
        if value.dim() == 4 and shape[0] == b and shape[2] == p and shape[3] != p:
            return ("batch", "head", "pos", "d"), "depth"
        raise WrongShape(
            f"{site} holds a tensor {shape} for {b} sequences of {p} places: it has no axes of batch, position and "
            "features that a dictionary could use."
        )

    @cached_property
    def blocks(self) -> list[Block]:
        """The stack of blocks, and what attention, mixer and MLP of each were found to be."""
        batch = self.example()
        return analyse(self.module, lambda: self._forward(batch), self._block_paths, self._places)

    @cached_property
    def _named(self) -> tuple[NamedSite, ...]:
        if not self._block_paths:
            return ()
        embed = Site(self._block_paths[0], "in")
        names: dict[str, Site] = {"embed": embed}
        for i, block in enumerate(self.blocks):
            writes = _writes(block)
            if not block.addends:
                self.unsure_writes |= {i}
            for child in block.children:
                names |= {f"{child.role}_in.{i}": child.read, f"{child.role}_out.{i}": child.write}
                if child in writes:
                    names[f"{child.role}_write.{i}"] = writes[child]
            names[f"resid.{i}"] = Site(block.path)
        self.probe(names.values())
        rows = [NamedSite(name, site, self.layout(site)) for name, site in names.items()]
        return (*self._token_embed(embed), *rows)

    def _token_embed(self, embed: Site) -> list[NamedSite]:
        """The token embedding alone, where positions or a norm are added before block 0."""
        table = self.module.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        path = next((n for n, m in self.module.named_modules() if m is table), None)
        if path is None:
            return []
        site = Site(path)
        values = self.record(self.example(), [site, embed])
        if values[site].shape == values[embed].shape and torch.equal(values[site], values[embed]):
            return []
        return [NamedSite("token_embed", site, self.layout(site))]

    def named_sites(self) -> tuple[NamedSite, ...]:
        return self._named

    @cached_property
    def _parts(self) -> tuple[Part, ...]:
        return tuple(
            Part(f"{child.role}.{i}", child.read, child.write, child.modules)
            for i, block in enumerate(self.blocks)
            for child in block.children
        )

    def parts(self) -> tuple[Part, ...]:
        return self._parts

    @torch.no_grad()
    def neurons(self, part: Part) -> Neurons | None:
        for path in last_matrix(self.module, part.replaces):
            module = self.module.get_submodule(path)
            W, bias = matrix(module), getattr(module, "bias", None)
            site = Site(path, "in")
            try:
                values = self.record(self.example(), [site, part.write])
            except UnderstudyError:
                continue
            if W.shape[1] != values[part.write].shape[-1] or site == part.read:
                continue
            written = values[site].float() @ W.float() + (0.0 if bias is None else bias.float())
            target = values[part.write].float()
            tolerance = 1e-2 if torch.finfo(W.dtype).eps > 1e-5 else 1e-4
            if (written - target).abs().max() <= tolerance * target.abs().max().clamp(min=1e-6):
                return Neurons(site, W, bias)
        return None

    def aside(self) -> tuple[str, ...]:
        head = self.module.get_output_embeddings()  # pyright: ignore[reportCallIssue]
        return tuple(n for n, m in self.module.named_modules() if isinstance(m, nn.Embedding) or m is head)


def _writes(block: Block) -> dict[Child, Site]:
    """Where what reaches the stream is not the child's own output but a norm behind it (Gemma 2, OLMo 2)."""
    behind = [s for s in block.addends if s not in [c.write for c in block.children]]
    if len(behind) != len(block.addends) or len(behind) != len(block.children):
        return {}
    return dict(zip(block.children, behind, strict=True))
