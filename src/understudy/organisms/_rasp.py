"""Programs over sequences: variables, attention that selects by a table, maps and bins; and what they mean.

After RASP (Weiss et al. 2021, arXiv:2106.06981) as compiled by Tracr (Lindner et al. 2023, arXiv:2301.05062). Place 0
holds a beginning-of-sequence mark, on which a head rests that selects nothing.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Label = Hashable


@dataclass(frozen=True)
class Variable:
    """A quantity at every place: one of some labels (a feature each, 0 or 1) or a number (one feature)."""

    name: str
    labels: tuple[Label, ...] = ()
    levels: tuple[float, ...] = ()
    """Of a number: every value it can take, ascending."""

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(f"{self.name}={label}" for label in self.labels) or (self.name,)

    def only(self, label: Label) -> "Variable":
        """Whether it is this label, as a number."""
        return Variable(f"{self.name}={label}", levels=(0.0, 1.0))


@dataclass(frozen=True)
class Attend:
    """out = mean of `value` over the places whose key the query selects; the mark where it selects none."""

    out: Variable
    query: Variable
    key: Variable
    table: Bool[Tensor, "n_query n_key"]
    value: Variable
    counts_mark: bool = False
    """Select the mark too, always: the mean then tells how many places were selected."""


@dataclass(frozen=True)
class Neuron:
    """max(0, bias + sum of reads) and what one unit of it writes."""

    name: str
    reads: Mapping[str, float]
    bias: float
    writes: Mapping[str, float]


@dataclass(frozen=True)
class Compute:
    """out = meaning(inputs) at each place, by one layer of neurons and constants that are always written."""

    out: Variable
    inputs: tuple[Variable, ...]
    neurons: tuple[Neuron, ...]
    constants: Mapping[str, float]
    meaning: Callable[..., Float[Tensor, "batch pos n"]]


Values = dict[str, Float[Tensor, "batch pos n"]]
"""By variable, and by feature."""


@dataclass
class Program:
    """Built by calling its methods; each returns the variable that it adds."""

    vocabulary: tuple[Label, ...]
    length: int
    """Places after the mark."""
    causal: bool = False
    ops: list[Attend | Compute] = field(default_factory=list)
    output: Variable | None = None

    def __post_init__(self) -> None:
        self.mark = Variable("mark", ("bos",))
        self.tokens = Variable("token", self.vocabulary)
        self.positions = Variable("position", tuple(range(self.length + 1)))

    def attend(
        self, name: str, query: Variable, key: Variable, select: Callable[[Label, Label], bool], value: Variable
    ) -> Variable:
        """Mean of `value` over the selected places."""
        out = Variable(name, value.labels)
        self.ops.append(Attend(out, query, key, _table(query, key, select), value))
        return out

    def mean(
        self, name: str, query: Variable, key: Variable, select: Callable[[Label, Label], bool], value: Variable,
        levels: Sequence[float],
    ) -> Variable:  # fmt: skip
        """Mean of a number, as a number that takes only these levels."""
        out = Variable(name, levels=tuple(sorted(levels)))
        self.ops.append(Attend(out, query, key, _table(query, key, select), value))
        return out

    def width(self, name: str, query: Variable, key: Variable, select: Callable[[Label, Label], bool]) -> Variable:
        """How many places are selected, as labels 0 .. length: bins of 1 / (1 + width)."""
        levels = {1 / (1 + w): w for w in range(self.length + 1)}
        inverse = Variable(f"{name}_inverse", levels=tuple(sorted(levels)))
        self.ops.append(Attend(inverse, query, key, _table(query, key, select), self.mark.only("bos"), True))
        return self.bin(name, inverse, levels)

    def bin(self, name: str, number: Variable, label: Mapping[float, Label]) -> Variable:
        """The label of the level that a number is at. Two neurons for each step from one label to the next."""
        labels = [label[level] for level in number.levels]
        out = Variable(name, tuple(dict.fromkeys(labels)))
        neurons: list[Neuron] = []
        for a, b, before, after in zip(number.levels, number.levels[1:], labels, labels[1:]):
            if before != after:
                neurons += _step(number.name, a, b, f"{name}={before}", f"{name}={after}")

        def meaning(x: Tensor) -> Tensor:
            nearest = (x - torch.tensor(number.levels)).abs().argmin(-1)
            return _one_hot(torch.tensor([out.labels.index(v) for v in labels])[nearest], len(out.labels))

        self.ops.append(Compute(out, (number,), tuple(neurons), {f"{name}={labels[0]}": 1.0}, meaning))
        return out

    def map(self, name: str, function: Callable[..., Label], *inputs: Variable) -> Variable:
        """A function of labels, as labels. One neuron for each combination: it fires where all of them hold."""
        cases = list(product(*(v.labels for v in inputs)))
        results = [function(*case) for case in cases]
        out = Variable(name, tuple(dict.fromkeys(results)))
        neurons = tuple(
            Neuron(
                f"{name} of {', '.join(map(str, case))}",
                {f"{v.name}={label}": 1.0 for v, label in zip(inputs, case, strict=True)},
                1.0 - len(case),
                {f"{name}={result}": 1.0},
            )
            for case, result in zip(cases, results, strict=True)
        )

        def meaning(*xs: Tensor) -> Tensor:
            joint = xs[0]
            for x in xs[1:]:
                joint = (joint[..., None] * x[..., None, :]).flatten(-2)
            rows = _one_hot(torch.tensor([out.labels.index(r) for r in results]), len(out.labels))
            return joint @ rows

        self.ops.append(Compute(out, inputs, neurons, {}, meaning))
        return out

    def run(self, tokens: Int[Tensor, "batch pos"]) -> Values:
        """What every variable is, by the meaning of the operations. tokens: 0 is the mark, 1 the first word."""
        n, length = tokens.shape
        words = _one_hot(tokens, len(self.vocabulary) + 1)
        values: Values = {}
        _put(values, self.mark, words[..., :1])
        _put(values, self.tokens, words[..., 1:])
        _put(values, self.positions, torch.eye(self.length + 1)[:length].expand(n, -1, -1))
        for op in self.ops:
            if isinstance(op, Compute):
                _put(values, op.out, op.meaning(*(values[v.name] for v in op.inputs)))
                continue
            selected = values[op.query.name] @ op.table.float() @ values[op.key.name].transpose(1, 2) > 0.5
            if self.causal:
                selected &= torch.ones(length, length, dtype=torch.bool).tril()
            selected[..., 0] |= op.counts_mark | ~selected.any(-1)
            pattern = selected.float()
            _put(values, op.out, pattern / pattern.sum(-1, keepdim=True) @ values[op.value.name])
        return values


def _put(values: Values, variable: Variable, value: Tensor) -> None:
    values |= {feature: value[..., i : i + 1] for i, feature in enumerate(variable.features)}
    values[variable.name] = value


def _table(query: Variable, key: Variable, select: Callable[[Label, Label], bool]) -> Tensor:
    return torch.tensor([[select(q, k) for k in key.labels] for q in query.labels])


def _step(x: str, low: float, high: float, before: str, after: str) -> list[Neuron]:
    """Moves one unit from a label to the next over the middle half of the gap between two levels."""
    width = (high - low) / 2
    start, stop = low + width / 2, low + 1.5 * width
    move = {before: -1.0, after: 1.0}
    back = {name: -w for name, w in move.items()}
    return [
        Neuron(f"{after} begins", {x: 1 / width}, -start / width, move),
        Neuron(f"{after} is reached", {x: 1 / width}, -stop / width, back),
    ]


def _one_hot(index: Tensor, n: int) -> Tensor:
    return torch.eye(n)[index]
