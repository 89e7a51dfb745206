"""Worlds, checks and true edges, on answers worked out by hand."""

import pytest
import torch

from understudy.core.records.errors import BadInput, UnknownName
from understudy.core.records.metric import Measured
from understudy.core.site import Site
from understudy.core.world import Check, TrueEdge, TrueFeature, Truth, mean, share

SITE = Site("a")


def feature(name: str) -> TrueFeature:
    return TrueFeature(name, (SITE,), torch.ones(2))


def truth(*edges: TrueEdge) -> Truth:
    names = dict.fromkeys(n for e in edges for n in (e.source, e.target))
    return Truth(tuple(feature(n) for n in names), edges)


def test_contracting_multiplies_along_paths_and_adds_over_them():
    made = truth(
        TrueEdge("a", "m", 2.0), TrueEdge("m", "z", 3.0), TrueEdge("a", "n", 1.0), TrueEdge("n", "z", 0.5)
    ).contract({"a", "z"})
    assert [(e.source, e.target, e.weight) for e in made] == [("a", "z", 6.5)]


def test_paths_of_both_signs_leave_an_edge_without_a_sign():
    made = truth(TrueEdge("a", "m", 2.0), TrueEdge("m", "z", 1.0), TrueEdge("a", "n", 1.0), TrueEdge("n", "z", -1.0))
    assert made.contract({"a", "z"})[0].weight == 0
    assert {(e.source, e.target) for e in made.contract({"a", "m", "z"})} == {("a", "m"), ("m", "z"), ("a", "z")}


def test_queries_and_keys_are_no_paths_unless_asked():
    made = truth(TrueEdge("q", "z", 1.0, path="query"), TrueEdge("v", "z", 1.0, path="value"))
    assert [e.source for e in made.contract({"q", "v", "z"})] == ["v"]
    assert len(made.contract({"q", "v", "z"}, paths=("value", "query"))) == 2


def test_kept_features_end_a_path():
    made = truth(TrueEdge("a", "m", 2.0), TrueEdge("m", "z", 3.0)).contract({"a", "m", "z"})
    assert [(e.source, e.target) for e in made] == [("a", "m"), ("m", "z")]


def test_truth_names_what_is_not_there():
    made = truth(TrueEdge("count=1", "z", 1.0))
    with pytest.raises(UnknownName, match="count=1"):
        made.feature("count=2")
    with pytest.raises(BadInput, match="a:out"):
        made.directions(Site("b"))
    assert made.directions(SITE).shape == (2, 2)
    assert made.as_json()["features"][0]["sites"] == ["a:out"]


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_interval_of_known_shares(hits, n, low, high):
    """The last row is Newcombe 1998, table I."""
    made = share(hits, n)
    assert (made.low, made.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_mean_has_the_normal_interval():
    made = mean(torch.tensor([1.0, 2.0, 3.0]), "units")
    assert made.value == 2
    assert made.high - made.value == pytest.approx(1.959964 / 3**0.5)


def test_checks_pass_and_fail_by_their_mark():
    figure = Measured(value=0.5, low=0.4, high=0.6, unit="x", n=9)

    def result(**mark):
        return Check("c", lambda: figure, **mark).run().passed

    assert result(at_least=0.5)
    assert not result(at_least=0.51)
    assert result(at_most=0.5)
    assert not result(at_most=0.49)
    assert result(around=0.41)
    assert not result(around=0.39)
