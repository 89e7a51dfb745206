import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.core.records.errors import UnknownName
from understudy.core.site import Site

paths = st.from_regex(r"([a-z_]+(\.[a-z0-9_]+){0,4})?", fullmatch=True)
ports = st.from_regex(r"(in|out)(\.[a-z0-9_]+){0,2}", fullmatch=True)


@given(paths, ports, st.none() | st.integers(0, 99))
def test_a_site_is_its_text(module: str, port: str, call: int | None):
    site = Site(module, port, call)
    assert Site.parse(str(site)) == site


def test_a_bare_path_is_an_output():
    assert Site.parse("model.layers.3.mlp") == Site("model.layers.3.mlp", "out")
    assert Site.parse("cell:in.h#2") == Site("cell", "in.h", 2)
    assert Site.parse("cell#2") == Site("cell", "out", 2)


def test_inputs_are_sites():
    assert Site.parse("inputs:input_ids").is_input
    assert not Site.parse("inputs:out").is_input


@pytest.mark.parametrize("text", ["a:middle", "a:", "a:in#x", "a:out#-1"])
def test_what_is_no_site_is_refused(text: str):
    with pytest.raises(UnknownName):
        Site.parse(text)
