"""Markup is escaped by construction, whatever the text."""

import pytest

from understudy.web.markup import Markup, escape, join, raw, tag

from .reports import HOSTILE


@pytest.mark.parametrize("text", HOSTILE)
def test_text_never_becomes_markup_and_always_encodes(text: str) -> None:
    for made in (escape(text), tag("b", text)[3:-4], tag("b", title=text)[10:-6]):
        assert not set(made) & set("<>\"'\x00\r")
        made.encode("utf-8")


def test_escaping_once_not_twice() -> None:
    assert escape(escape("a & b")) == "a &amp; b"
    assert tag("p", "1 < 2", tag("b", "&")) == "<p>1 &lt; 2<b>&amp;</b></p>"
    assert isinstance(join("<", Markup("<br>")), Markup)
    assert join("<", Markup("<br>"), None, ["x", 3]) == "&lt;<br>x3"


def test_what_cannot_be_seen_is_named() -> None:
    assert escape("\x00\u202e\ud800") == "⟨00⟩⟨U+202E⟩\ufffd"
    assert escape("a\tb\nc") == "a\tb\nc"


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("script", {}),
        ("style", {}),
        ("b onclick=x", {}),
        ("b", {"onclick": "x"}),
        ("b", {"style": "x"}),
        ("a", {"href": "javascript:alert(1)"}),
        ("a", {"href": "https://example.org"}),
        ("img", {"src": "x"}),
    ],
)
def test_what_could_run_or_load_is_refused(name: str, attributes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"cannot|not allowed|only lead"):
        tag(name, **attributes)


def test_static_text_that_could_end_its_element_is_refused() -> None:
    with pytest.raises(ValueError, match="could end it"):
        raw("script", "'</script>'")
    with pytest.raises(ValueError, match="not a raw text element"):
        raw("div", "x")
