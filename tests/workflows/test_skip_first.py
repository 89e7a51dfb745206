"""Massive activations at the first place: left out, they change no figure; let in, they change all."""

import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from understudy.core.batch import Batch
from understudy.core.dictionary import Group
from understudy.core.records.errors import BadData
from understudy.core.records.scorecard import Scorecard
from understudy.core.records.summary import summary
from understudy.core.replacement import Replacement
from understudy.core.site import Site
from understudy.networks import AnyModule, open_network
from understudy.networks.any_module import Part
from understudy.workflows._data import n_skipped, open_sequences
from understudy.workflows.evaluate import EvaluateConfig, evaluate, open_run
from understudy.workflows.train import TrainConfig, train

VOCAB, D, POS = 13, 8, 12


class Spiked(nn.Module):
    """A token-wise network whose stream has a massive coordinate at position 0, where nothing else can see it."""

    def __init__(self, spike: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(VOCAB, D), nn.Linear(D, VOCAB)
        self.mlp = nn.Sequential(nn.Linear(D, 32), nn.ReLU(), nn.Linear(32, D))
        self.spike = spike

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = torch.cat([x[:, :1] + self.spike * F.one_hot(torch.tensor(3), D), x[:, 1:]], 1)
        return self.head(x + self.mlp(x))


class Rows:
    """Sequences of random tokens, each to be predicted from the one before; no mask of their own."""

    def __init__(self, seed: int) -> None:
        self.tokens = torch.randint(VOCAB, (160, POS), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows) -> Batch:
        return Batch({"tokens": self.tokens[rows]}, targets=self.tokens[rows].roll(-1, 1))


def network(spike: float) -> AnyModule:
    def loss(output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output.transpose(1, 2), batch.targets, reduction="none")

    def divergence(a: Tensor, b: Tensor, batch: Batch) -> Tensor:
        return (a.log_softmax(-1).exp() * (a.log_softmax(-1) - b.log_softmax(-1))).sum(-1)

    return AnyModule(
        Spiked(spike), Rows(0).batch(slice(0, 2)), ("batch", "pos", "d"), name="spiked", loss=loss,
        divergence=divergence, choice=lambda output: output.argmax(-1),
        parts=[Part("mlp.0", Site("mlp", "in"), Site("mlp", "out"))],
        sequences=lambda split: Rows(0 if split == "train" else 1),
    )  # fmt: skip


def judged(out, spike: float, skip_first: int | None) -> tuple[Scorecard, bytes]:
    values = {"kind": "transcoder", "sites": "mlp.0", "n_latents": 24, "k": 3, "tokens": 3000, "batch": 128}
    net = network(spike)
    train(TrainConfig(**values, out=out, skip_first=skip_first), network=net)
    card = evaluate(EvaluateConfig(run=out, sequences=32, rollouts=0), network=net)
    return card, (out / "weights.safetensors").read_bytes()


def figures(card: Scorecard) -> dict:
    data = json.loads(card.model_dump_json(exclude={"run"}))
    for row in data["dictionaries"]:
        del row["largest_norm"]
    return data


def test_a_massive_first_activation_changes_nothing_when_it_is_skipped(tmp_path):
    """Weights, thresholds, local figures, rivals, ablations and losses: bit for bit."""
    (plain, w_plain), (spiked, w_spiked) = (judged(tmp_path / str(s), s, 1) for s in (0.0, 1e4))
    assert w_plain == w_spiked
    assert figures(plain) == figures(spiked)
    assert plain.places == 32 * (POS - 1)
    assert "position_mean" in plain.baselines
    assert spiked.replaced.skip_first == 1
    assert spiked.dictionaries[0].largest_norm.value > 1000 > 20 > plain.dictionaries[0].largest_norm.value
    assert "massive activations" in summary(spiked)
    assert "massive activations" not in summary(plain)
    assert "still original and not scored: the first place of every sequence" in summary(spiked)


def test_it_changes_everything_when_it_is_not(tmp_path):
    (plain, w_plain), (spiked, w_spiked) = (judged(tmp_path / str(s), s, None) for s in (0.0, 1e4))
    assert plain.places == 32 * POS
    assert w_plain != w_spiked
    assert spiked.dictionaries[0].fvu.high < plain.dictionaries[0].fvu.low, "one coordinate is most of the variance"
    assert spiked.replacement.delta_loss.low > plain.replacement.delta_loss.high


def test_the_largest_norm_is_counted_by_hand(tmp_path):
    card, _ = judged(tmp_path / "run", 50.0, 1)
    net, rows = network(50.0), Rows(1)
    from understudy.data import Order

    picked = Order(len(rows), 0).stream(0, 32)
    norms = net.record(rows.batch(picked), [Site("mlp")])[Site("mlp")].norm(dim=-1).flatten()
    found = card.dictionaries[0].largest_norm
    assert found.value == pytest.approx((norms.max() / norms.median()).item(), rel=1e-6)
    assert (found.unit, found.n) == ("medians", 32 * POS)


# -- rows that open with a token ------------------------------------------------------------------------------------


def test_rows_open_with_the_tokenizers_beginning_of_sequence_where_the_network_wants_it(text):
    demo = open_network("demo")
    assert demo.opening is None, "the demo network keeps the rows it was trained on"
    assert n_skipped(demo, None) == 0
    from understudy.networks.listing import demo_path

    same = open_network(f"hf:{demo_path('')}")
    assert same.opening == same.tokenizer.bos_token_id
    assert n_skipped(same, None) == 1
    assert n_skipped(same, 0) == 0
    rows = open_sequences(same, f"text:{text}", "train", 32)
    batch = rows.batch(slice(None))
    assert (batch.inputs["input_ids"][:, 0] == same.opening).all()
    assert not batch.mask[:, 0].any()
    assert batch.mask[:-1, 1:].all()
    plain = open_sequences(demo, f"text:{text}", "train", 32)
    assert not (plain.tokens[:, 0] == same.opening).all()
    assert plain.batch([0]).mask.all()
    with pytest.raises(BadData, match="behind the 31 that are left out"):
        open_sequences(same, f"text:{text}", "train", 32, skip_first=31)


def test_the_opening_stays_original_when_the_network_writes(finished):
    """A cache holds what came before: only the first pass of a text begins it."""
    network = finished.network
    prompts = torch.arange(40).reshape(2, 20) + 5
    own = network.generate(prompts, 8, 0)

    def written(skip_first: int) -> Tensor:
        with Replacement(network, finished.groups, skip_first).installed():
            return network.generate(prompts, 8, 0)

    assert torch.equal(written(100), own)
    assert not torch.equal(written(0), own)
    assert not torch.equal(written(20), own), "what follows the prompt is replaced"
    assert torch.equal(written(27), own), "the last token that is read is at place 26"


def test_a_run_opens_with_what_it_was_trained_with(small):
    train(TrainConfig(**{**small, "skip_first": 2, "tokens": 1000, "sites": "mlp.1"}))
    run = open_run(small["out"])
    assert run.skip_first == run.replacement.skip_first == 2
    batch = run.network.example()
    with torch.no_grad():
        out, clean = run.replacement.run(batch).output.logits, run.network(batch).logits
    assert torch.equal(out[:, :2], clean[:, :2])
    assert not torch.equal(out[:, 2:], clean[:, 2:])
    assert isinstance(run.groups[0], Group)
