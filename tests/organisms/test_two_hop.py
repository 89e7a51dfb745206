"""The data of two_hop: what may be composed, and what is never said."""

import torch

from understudy.organisms import two_hop as organism
from understudy.organisms.two_hop import N_ENTITIES, N_RELATIONS, NOTHING, PLACE, _data, facts


def test_answers_and_bridges_by_the_facts():
    table, data = facts(0), _data(0)
    for split in ("train", "held_out"):
        batch = data[split].batch(slice(0, 50))
        for (h, q, r), target, bridge in zip(
            batch.inputs["input_ids"].tolist(), batch.targets.tolist(), batch.tags["bridge"].tolist()
        ):
            b = int(table[q - N_ENTITIES, h])
            assert bridge == [-100, b, -100]
            assert target == [-100, -100, int(table[r - N_ENTITIES, b])]


def test_each_composition_is_in_one_split_and_every_fact_is_told():
    data = _data(0)
    rows = [data[s].batch(slice(0, len(data[s]))) for s in ("train", "held_out")]
    seen, held = ({tuple(r) for r in b.inputs["input_ids"].tolist()} for b in rows)
    assert not seen & held
    assert len(seen) + len(held) == N_ENTITIES * N_RELATIONS**2
    hops = data["hops"].batch(slice(0, len(data["hops"])))
    assert len(hops.inputs["input_ids"].unique(dim=0)) == N_ENTITIES * N_RELATIONS
    assert (hops.inputs["input_ids"][:, 0] == NOTHING).all()


def test_held_out_compositions_could_be_composed():
    """The second hop of each, from the same bridge, is in training by another way: else no network could know it."""
    data = _data(0)
    train, held = (data[s].batch(slice(0, len(data[s]))) for s in ("train", "held_out"))

    def second(batch):
        return {
            (b, r) for b, r in zip(batch.tags["bridge"][:, PLACE].tolist(), batch.inputs["input_ids"][:, 2].tolist())
        }

    assert second(held) <= second(train)


def test_a_bridge_put_in_is_followed_by_no_untrained_network():
    module = organism._module().eval()
    data = _data(0)
    network = organism.OrganismNetwork(module, "untrained", data, {}, output="logits")
    for same in (True, False):
        assert organism._moved(network, facts(0), same).value < 0.15


def test_the_truth_of_a_bridge_is_where_it_stands():
    module = organism._module().eval()
    data = _data(0)
    truth = organism._truth(organism.OrganismNetwork(module, "x", data, {}, output="logits"), facts(0))
    values = truth.values(data["held_out"].batch(slice(0, 9)))
    assert torch.equal(values.sum(-1), torch.tensor([0.0, 1.0, 0.0]).expand(9, 3))
    assert float(torch.stack([f.direction for f in truth.features]).mean(0).abs().max()) < 1e-5
