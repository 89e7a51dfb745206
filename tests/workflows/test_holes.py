"""Where the nats are lost: parts add up, planted errors are found, and what loses nothing shows nothing."""

import json

import pytest
import torch

from understudy.baselines import PCA, Constant, LinearMap
from understudy.cli.main import main
from understudy.core.dictionary import Group
from understudy.core.names import find_sites
from understudy.core.records.errors import BadFolder, BadInput
from understudy.core.records.holes import EVERYWHERE, Holes
from understudy.core.records.metric import Measured, NotMeasured
from understudy.core.records.progress import SILENT
from understudy.metrics import Bootstrap
from understudy.networks import open_network
from understudy.sparsity import Identity
from understudy.workflows._data import open_sequences
from understudy.workflows._holes.cells import Figures
from understudy.workflows._holes.errors import fit_errors
from understudy.workflows._holes.passes import Arms, losses_of_arms, returned, without
from understudy.workflows.evaluate import EvaluateConfig, evaluate
from understudy.workflows.holes import HolesConfig, holes

WIDTH = 192


def value(metric) -> float:
    assert isinstance(metric, Measured), metric
    assert metric.low <= metric.value <= metric.high
    return metric.value


@pytest.fixture(scope="module")
def found(finished) -> Holes:
    config = HolesConfig(run=finished.folder.path, sequences=10, ranks="1,192", fit_places=2000, shown=3)
    return holes(config)


def test_the_figures_are_those_of_the_scorecard(found, finished):
    card = evaluate(EvaluateConfig(run=finished.folder.path, sequences=10, rollouts=0))
    for name in ("loss_clean", "loss_replaced", "delta_loss"):
        own, other = getattr(found, name), getattr(card.replacement, name)
        assert (own.value, own.low, own.high) == pytest.approx((other.value, other.low, other.high), abs=1e-6)
    assert found.places == card.places
    by_position = {(p.first, value(p.delta_loss)) for p in card.positions if isinstance(p.delta_loss, Measured)}
    own = {c.first: c.delta_loss for c in found.by_position if c.arm == EVERYWHERE}
    for first, delta in by_position:
        assert value(own[first]) == pytest.approx(delta, abs=1e-6)


def test_sites_and_interaction_add_up(found):
    alone = sum(value(s.alone) for s in found.sites)
    assert value(found.sum_alone) == pytest.approx(alone)
    assert value(found.interaction) == pytest.approx(value(found.delta_loss) - alone)
    assert [s.name for s in found.sites] == [f"mlp_out.{i}" for i in range(4)]


def test_parts_add_up_to_the_whole(found):
    for arm, whole in [(EVERYWHERE, found.delta_loss), *((s.name, s.alone) for s in found.sites)]:
        for cells in (found.by_slice, found.by_position):
            own = [c for c in cells if c.arm == arm]
            assert sum(c.share for c in own) == pytest.approx(1)
            assert sum(value(c.adds) for c in own) == pytest.approx(value(whole), abs=1e-9)
    for cell in found.by_slice:
        if isinstance(cell.delta_loss, Measured):
            assert value(cell.adds) == pytest.approx(cell.share * cell.delta_loss.value, abs=1e-9)


def test_cells_are_the_largest_and_lie_in_slice_and_position(found):
    adds = [value(c.adds) for c in found.cells]
    assert adds == sorted(adds, reverse=True)
    assert found.n_cells > len(adds)
    shares = {(c.arm, c.slice): c.share for c in found.by_slice}
    for c in found.cells:
        assert c.slice
        assert c.first is not None
        assert c.share <= shares[c.arm, c.slice] + 1e-12


def test_the_whole_error_put_back_is_the_network(found):
    assert value(found.returned[1].recovered) == pytest.approx(1, abs=1e-3)
    for site in found.sites:
        assert [r.rank for r in site.returned] == [1, WIDTH]
        if isinstance(site.returned[1].recovered, Measured):
            assert value(site.returned[1].recovered) == pytest.approx(1, abs=1e-2)
        (error,) = site.errors
        assert value(error.directions[1].share) == pytest.approx(1)
        assert error.directions[0].chance == pytest.approx(1 / WIDTH)


def test_the_shuffled_control_is_chance(found):
    """Below 0 by at most the noise of a map fitted to as few rows."""
    for site in found.sites:
        control = value(site.errors[0].control)
        assert -3 * WIDTH / found.fit_rows < control < 0.02
        assert value(site.errors[0].predictable) > control


def test_the_worst_come_first_with_their_text(found, finished):
    losses = [s.delta_loss for s in found.worst_sequences]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > value(found.delta_loss)
    places = [p.token.lost for p in found.worst_places]
    assert places == sorted(places, reverse=True)
    assert len(places) == 9
    for s in found.worst_sequences:
        assert sum(t.lost for t in s.tokens) / s.places == pytest.approx(s.delta_loss, abs=1e-6)
        assert max(t.lost for t in s.tokens) <= places[0] + 1e-9


def test_few_places_carry_the_loss(found):
    one, ten = found.concentration
    assert 0.01 < value(one.of_excess) < value(ten.of_excess)


def test_it_is_written_and_read_back(found, finished):
    assert Holes.model_validate_json(finished.folder.file("holes.json").read_text()) == found
    assert str(found).count("\n") > 20


# -- planted errors ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(text):
    """mlp_out.1 lacks 3 directions, mlp_out.2 is exact, mlp_out.3 is the best linear map of its input."""
    network = open_network("demo")
    sequences = open_sequences(network, f"text:{text}", "train", 64)
    sites = find_sites(network, "mlp_out.1,mlp_out.2,mlp_out.3,mlp_in.3")
    with torch.no_grad():
        batch = sequences.batch(slice(0, 200))
        sample = {s: x[batch.mask] for s, x in network.record(batch, sites).items()}
    one, two, read, three = sites
    groups = {
        "one": Group([PCA.fit(one, sample, WIDTH - 3, Identity())]),
        "two": Group([PCA.fit(two, sample, WIDTH, Identity())]),
        "three": Group([LinearMap.fit(read, three, sample, Identity())]),
    }
    arms = Arms.of(network, groups, 0)
    fits = fit_errors(arms.whole, sequences, 20_000, 0, SILENT)
    picked = torch.arange(24)
    losses = losses_of_arms(arms, fits, [1, 3], sequences, picked, SILENT)
    return Figures(losses, Bootstrap(24)), [one, two, three]


def test_a_planted_rank_is_found_and_putting_it_back_repairs_all(planted):
    figures, (one, _, _) = planted
    assert value(figures.losses.errors[one].share(3, figures.bootstrap)) == pytest.approx(1, abs=1e-4)
    assert value(figures.losses.errors[one].share(1, figures.bootstrap)) < 0.9
    back = figures.losses.lost(returned("one", 3))
    assert abs(back).max() < 1e-3
    assert abs(figures.losses.lost("one")).max() > 10 * abs(back).max()


def test_an_error_that_is_linear_in_what_is_read_is_predicted_and_a_residual_is_not(planted):
    figures, (one, _, three) = planted
    errors, b = figures.losses.errors, figures.bootstrap
    assert value(errors[one].predictable(b)) > 0.99
    assert value(errors[one].predictable(b, shuffled=True)) < 0.1
    assert abs(value(errors[three].predictable(b))) < 0.1


def test_what_is_written_exactly_costs_nothing_alone_or_last(planted):
    figures, _ = planted
    assert abs(figures.losses.lost("two")).max() < 1e-3
    assert abs(figures.losses.lost(EVERYWHERE, without("two"))).max() < 2e-3
    assert value(figures.lost("three")) > 0.01


def test_one_group_has_no_others(text):
    network = open_network("demo")
    sequences = open_sequences(network, f"text:{text}", "train", 32)
    (site,) = find_sites(network, "mlp_out.2")
    arms = Arms.of(network, {"only": Group([Constant(site, torch.zeros(WIDTH))])}, 0)
    fits = fit_errors(arms.whole, sequences, 200, 0, SILENT)
    losses = losses_of_arms(arms, fits, [1], sequences, torch.arange(4), SILENT)
    assert (losses.lost("only") == losses.lost(EVERYWHERE)).all()
    assert without("only") not in losses.nats


# -- the command ------------------------------------------------------------------------------------------------------


def test_one_site_of_a_run_by_its_address(finished, capsys):
    address = f"{finished.folder.path}:mlp.1"
    assert main(["holes", address, "--sequences", "4", "--fit-places", "500", "--ranks", "2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [s["name"] for s in data["sites"]] == ["mlp_out.1"]
    assert data["interaction"]["value"] == 0
    page = finished.folder.file("holes.mlp.1.html").read_text()
    assert data["page"].endswith("holes.mlp.1.html")
    assert "mlp_out.1" in page


def test_bad_input_is_refused(finished, tmp_path):
    with pytest.raises(BadInput, match="whole numbers of directions"):
        holes(HolesConfig(run=finished.folder.path, ranks="a few"))
    with pytest.raises(BadInput, match="whole numbers of directions"):
        holes(HolesConfig(run=finished.folder.path, ranks="0,4"))
    with pytest.raises(BadFolder):
        holes(HolesConfig(run=tmp_path / "nothing"))


def test_too_few_sequences_give_reasons_not_figures(finished):
    thin = holes(HolesConfig(run=finished.folder.path, sequences=2, fit_places=500, ranks="1"))
    for metric in (thin.delta_loss, thin.interaction, thin.sites[0].alone):
        assert isinstance(metric, Measured | NotMeasured)
        if isinstance(metric, Measured):
            assert metric.n == 2
