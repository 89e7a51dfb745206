"""From a program to the weights of an ordinary transformer, a direction for each feature, and the truth about them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from understudy.core.batch import Batch
from understudy.core.site import Site
from understudy.core.world import TrueEdge, TrueFeature, Truth
from understudy.organisms import _seeds
from understudy.organisms._rasp import Attend, Compute, Program, Variable
from understudy.organisms._transformer import MLP, Attention, Block, Transformer

SHARP = 100.0
"""Score of a selected place; the mark scores half and others 0, so that weights leak by exp(-50)."""
LOGIT = 20.0
"""What one unit of an output feature adds to its logit."""


@dataclass(frozen=True)
class Compiled:
    module: Transformer
    truth: Truth
    program: Program


def compile_program(program: Program, rotation: int | None = None) -> Compiled:
    """rotation: seed of a random orthogonal matrix for the stream's basis; None: features are axes of the stream."""
    return _Compiler(program, rotation).compile()


class _Compiler:
    def __init__(self, program: Program, rotation: int | None) -> None:
        self.program = program
        self.variables = [program.mark, program.tokens, program.positions, *(op.out for op in program.ops)]
        names = [f for v in self.variables for f in v.features]
        self.d = len(names)
        basis = torch.eye(self.d) if rotation is None else _orthogonal(self.d, rotation)
        self.direction = dict(zip(names, basis, strict=True))
        self.slots = _slots(program)
        self.n_blocks = max(self.slots.values(), default=0) // 2 + 1
        self.features: list[TrueFeature] = []
        self.edges: list[TrueEdge] = []

    def compile(self) -> Compiled:
        p = self.program
        for variable in (p.mark, p.tokens, p.positions):
            self._add_features(variable, Site("stream"), 0)
        blocks = [Block(self._attention(i), self._mlp(i), self.d, norm=False) for i in range(self.n_blocks)]
        assert p.output is not None
        module = Transformer(len(p.vocabulary) + 1, p.length + 1, len(p.output.features), self.d, blocks)
        with torch.no_grad():
            module.embed.weight.copy_(self._rows([*p.mark.features, *p.tokens.features]))
            module.positions.weight.copy_(self._rows(p.positions.features))
            module.unembed.weight.copy_(LOGIT * self._rows(p.output.features))
        for i, feature in enumerate(p.output.features):
            logit = f"logit {feature}"
            self.features.append(TrueFeature(logit, (Site("unembed"),), torch.eye(len(p.output.features))[i], "output"))
            self.edges.append(TrueEdge(feature, logit, LOGIT, "unembed"))
        truth = Truth(tuple(self.features), tuple(self.edges), {"output": p.output.name}, self._values)
        return Compiled(module.eval(), truth, p)

    def _rows(self, names: Iterable[str]) -> Tensor:
        return torch.stack([self.direction[name] for name in names])

    def _add_features(self, variable: Variable, site: Site, slot: int) -> None:
        """A feature stays in the stream from where it is written on. slot: the first sublayer that can read it."""
        later = [Site(f"blocks.{s // 2}.{('attn', 'mlp')[s % 2]}", "in") for s in range(slot, 2 * self.n_blocks)]
        later = [s for s in later if self._has(s.module)]
        streams = [Site(f"blocks.{i}") for i in range(max(0, (slot - 1) // 2), self.n_blocks)]
        for name in variable.features:
            self.features.append(TrueFeature(name, (site, *later, *streams), self.direction[name]))

    def _has(self, path: str) -> bool:
        _, i, kind = path.split(".")
        return 2 * int(i) + (kind == "mlp") in self.slots.values()

    def _attention(self, i: int) -> Attention | None:
        ops = [op for op in self.program.ops if isinstance(op, Attend) and self.slots[op.out.name] == 2 * i]
        if not ops:
            return None
        path = f"blocks.{i}.attn"
        d_head = max(max(len(op.key.features) + 1, len(op.value.features)) for op in ops)
        made = Attention(self.d, len(ops), d_head, self.program.causal, bias=True)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.zero_()
            for head, op in enumerate(ops):
                self._head(made, op, head * d_head)
        for op in ops:
            self._add_features(op.out, Site(path), 2 * i + 1)
            self._attention_edges(op, path)
        return made

    def _head(self, made: Attention, op: Attend, at: int) -> None:
        n_key, n_value = len(op.key.features), len(op.value.features)
        keys, values = slice(at, at + n_key), slice(at, at + n_value)
        made.q.weight[keys] += SHARP * op.table.float().T @ self._rows(op.query.features)
        made.k.weight[keys] += self._rows(op.key.features)
        made.q.bias[at + n_key] = SHARP if op.counts_mark else SHARP / 2
        made.k.weight[at + n_key] += self.direction[self.program.mark.features[0]]
        made.v.weight[values] += self._rows(op.value.features)
        made.o.weight[:, values] += self._rows(op.out.features).T

    def _attention_edges(self, op: Attend, path: str) -> None:
        pairs = zip(op.value.features, op.out.features, strict=True)
        self.edges += [TrueEdge(a, b, 1.0, path, "value") for a, b in pairs]
        queries = [f for f, row in zip(op.query.features, op.table) if row.any()]
        keys = [f for f, column in zip(op.key.features, op.table.T) if column.any()]
        self.edges += [TrueEdge(f, b, 1.0, path, "query") for f in queries for b in op.out.features]
        self.edges += [TrueEdge(f, b, 1.0, path, "key") for f in keys for b in op.out.features]

    def _mlp(self, i: int) -> MLP | None:
        ops = [op for op in self.program.ops if isinstance(op, Compute) and self.slots[op.out.name] == 2 * i + 1]
        if not ops:
            return None
        path = f"blocks.{i}.mlp"
        neurons = [n for op in ops for n in op.neurons]
        made = MLP(self.d, len(neurons))
        with torch.no_grad():
            made.read.weight.copy_(torch.stack([self._sum(n.reads) for n in neurons]))
            made.read.bias.copy_(torch.tensor([n.bias for n in neurons]))
            made.write.weight.copy_(torch.stack([self._sum(n.writes) for n in neurons], 1))
            made.write.bias.copy_(self._sum({k: v for op in ops for k, v in op.constants.items()}))
        for op in ops:
            self._add_features(op.out, Site(path), 2 * i + 2)
        axes = torch.eye(len(neurons))
        for n, axis in zip(neurons, axes, strict=True):
            self.features.append(TrueFeature(n.name, (Site(f"{path}.act"),), axis, "neuron"))
            self.edges += [TrueEdge(f, n.name, w, path) for f, w in n.reads.items()]
            self.edges += [TrueEdge(n.name, f, w, path) for f, w in n.writes.items()]
        return made

    def _sum(self, weights: Mapping[str, float]) -> Tensor:
        return sum((w * self.direction[name] for name, w in weights.items()), torch.zeros(self.d))

    def _values(self, batch: Batch) -> Tensor:
        """Of every true feature, by the program's meaning; neurons and logits by their definition."""
        run = self.program.run(batch.inputs["input_ids"])
        named = {f: run[f][..., 0] for v in self.variables for f in v.features}
        zero = torch.zeros(batch.inputs["input_ids"].shape)
        for op in self.program.ops:
            for n in op.neurons if isinstance(op, Compute) else ():
                named[n.name] = (sum((w * named[f] for f, w in n.reads.items()), zero) + n.bias).relu()
        assert self.program.output is not None
        named |= {f"logit {f}": LOGIT * named[f] for f in self.program.output.features}
        return torch.stack([named[f.name] for f in self.features], -1)


def _slots(program: Program) -> dict[str, int]:
    """The sublayer that computes each variable, as early as can be: block i's attention is 2i, its MLP 2i + 1."""
    given = (program.mark, program.tokens, program.positions)
    found = {f: -1 for v in given for f in v.features}
    slots: dict[str, int] = {}
    for op in program.ops:
        needs = op.inputs if isinstance(op, Compute) else (op.query, op.key, op.value)
        slot = max(found[f] for v in needs for f in v.features) + 1
        slots[op.out.name] = slot + (slot % 2 != isinstance(op, Compute))
        found |= dict.fromkeys(op.out.features, slots[op.out.name])
    return slots


def _orthogonal(d: int, seed: int) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(d, d, generator=_seeds.generator(seed), dtype=torch.float64))
    return (q * r.diagonal().sign()).float().T.contiguous()


def shuffled(module: nn.Module, seed: int) -> None:
    """Permute the entries of every parameter in place: the same numbers, no mechanism."""
    generator = _seeds.generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
