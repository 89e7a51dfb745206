"""A transformer written out: ordinary Linears, a softmax that is a module, one ReLU layer; with or without norms."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from understudy.core.network import Part
from understudy.core.site import Site


class Attention(nn.Module):
    """Scores are q . k without a scale; the pattern [batch, head, query, key] is the output of `pattern`."""

    def __init__(self, d: int, n_heads: int, d_head: int, causal: bool, bias: bool = False) -> None:
        super().__init__()
        self.n_heads, self.causal = n_heads, causal
        self.q, self.k = (nn.Linear(d, n_heads * d_head, bias=bias) for _ in range(2))
        self.v = nn.Linear(d, n_heads * d_head, bias=False)
        self.o = nn.Linear(n_heads * d_head, d, bias=False)
        self.pattern = nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2)
        if self.causal:
            later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        return self.o((self.pattern(scores) @ v).transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    def __init__(self, d: int, d_mlp: int, d_out: int | None = None) -> None:
        super().__init__()
        self.read, self.act, self.write = nn.Linear(d, d_mlp), nn.ReLU(), nn.Linear(d_mlp, d_out or d)

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self.act(self.read(x)))


class Block(nn.Module):
    """x + attn(norm(x)), then + mlp(norm(x)); either may be missing, norms too."""

    def __init__(self, attn: Attention | None, mlp: MLP | None, d: int, norm: bool) -> None:
        super().__init__()
        self.attn, self.mlp = attn, mlp
        self.attn_norm = nn.LayerNorm(d) if norm else None
        self.mlp_norm = nn.LayerNorm(d) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        if self.attn is not None:
            x = x + self.attn(x if self.attn_norm is None else self.attn_norm(x))
        if self.mlp is not None:
            x = x + self.mlp(x if self.mlp_norm is None else self.mlp_norm(x))
        return x


class Transformer(nn.Module):
    """input_ids [batch, pos] -> logits [batch, pos, n_out], with learned or given positions."""

    def __init__(
        self, n_vocab: int, n_places: int, n_out: int, d: int, blocks: Sequence[Block], norm: bool = False
    ) -> None:
        super().__init__()
        self.n_vocab = n_vocab
        self.embed, self.positions = nn.Embedding(n_vocab, d), nn.Embedding(n_places, d)
        self.stream = nn.Identity()  # the site where embeddings are summed
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(d) if norm else None
        self.unembed = nn.Linear(d, n_out, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.stream(self.embed(input_ids) + self.positions.weight[: input_ids.shape[1]])
        for block in self.blocks:
            x = block(x)
        return self.unembed(x if self.norm is None else self.norm(x))


def transformer(
    n_vocab: int,
    n_places: int,
    n_out: int,
    d: int,
    n_blocks: int,
    n_heads: int,
    d_mlp: int,
    *,
    causal: bool,
    norm: bool,
) -> Transformer:
    """One to be trained: d / n_heads wide heads, scores scaled at the start by a smaller query."""
    d_head = d // n_heads
    blocks = [Block(Attention(d, n_heads, d_head, causal), MLP(d, d_mlp), d, norm) for _ in range(n_blocks)]
    made = Transformer(n_vocab, n_places, n_out, d, blocks, norm)
    with torch.no_grad():
        for table in (made.embed, made.positions):
            table.weight.mul_(d**-0.5)
        for block in blocks:
            assert block.attn is not None
            block.attn.q.weight.mul_(d_head**-0.5)
    return made


def sites(module: Transformer) -> dict[str, str]:
    """Short names, in forward order."""
    named = {"embed": "stream"}
    for i, block in enumerate(module.blocks):
        for kind in ("attn", "mlp"):
            if getattr(block, kind) is not None:
                named |= {f"{kind}_in.{i}": f"blocks.{i}.{kind}:in", f"{kind}_out.{i}": f"blocks.{i}.{kind}"}
        named[f"resid.{i}"] = f"blocks.{i}"
    return named


def parts(module: Transformer) -> list[Part]:
    """The MLPs: what transcoders replace."""
    paths = {i: f"blocks.{i}.mlp" for i, block in enumerate(module.blocks) if block.mlp is not None}
    return [Part(f"mlp.{i}", Site(path, "in"), Site(path)) for i, path in paths.items()]
