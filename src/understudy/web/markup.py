"""HTML that is escaped by construction: text becomes markup only through `tag`, `raw` and `escape`.

A token of source code may be `</script>`, a NUL, half a surrogate pair or a right-to-left override. Whatever is not
already `Markup` is escaped; attribute names, link targets and elements that could run code are checked here, once.
"""

import re
from collections.abc import Iterable

VOID = frozenset({"meta", "link", "br", "hr", "input", "wbr"})
NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*\Z")
PNG = re.compile(r"iVBORw0KGgo[A-Za-z0-9+/]*={0,2}\Z")
_ENTITIES = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord('"'): "&quot;", ord("'"): "&#39;"}
_CONTROLS = {code: f"\u27e8{code:02X}\u27e9" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}
_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)
_HIDDEN = {code: f"\u27e8U+{code:04X}\u27e9" for code in (*_BIDI, 0x00AD, 0x200B, 0x2028, 0x2029, 0xFEFF)}
_TABLE = _ENTITIES | _CONTROLS | _HIDDEN
_INVALID = re.compile("[\ud800-\udfff\ufdd0-\ufdef]")
_NONCHARACTERS = {plane << 16 | low: "\ufffd" for plane in range(17) for low in (0xFFFE, 0xFFFF)}

Child = object
"""None, str, int, float, `Markup`, or an iterable of these."""


class Markup(str):
    """Text that is HTML already. Only this module and the shipped static files make it."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """`text` as HTML, safe in an element and in a quoted attribute, encodable as UTF-8.

    Control characters, direction overrides and invisible characters show as their code points, `\\x00` as `⟨00⟩`; lone
    surrogates and non-characters as U+FFFD. A zero-width joiner stays, since emoji and scripts need it.
    """
    if isinstance(text, Markup):
        return text
    return Markup(_INVALID.sub("\ufffd", text).translate(_NONCHARACTERS).translate(_TABLE))


def join(*children: Child) -> Markup:
    """Children one after another, each escaped unless it is `Markup`."""
    return Markup("".join(_pieces(children)))


def _pieces(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, str):
            yield escape(child)
        elif isinstance(child, int | float):
            yield escape(str(child))
        elif isinstance(child, Iterable):
            yield from _pieces(child)
        else:
            raise TypeError(f"{type(child).__name__} cannot be a child of an element; give text, a number or Markup")


def tag(name: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """An element. `class_` and `for_` lose their underscore, others read `-` for `_`; None and False are left out.

    Raises ValueError for what could run code or load something: `on*` and `style` attributes, `script` and `style`
    elements (see `raw`), and links that leave the page.
    """
    if not NAME.match(name) or name in ("script", "style"):
        raise ValueError(f"<{name}> cannot be built from text")
    opening = f"<{name}{''.join(_attributes(attributes))}>"
    if name in VOID:
        return Markup(opening)
    return Markup(f"{opening}{join(*children)}</{name}>")


def _attributes(attributes: dict[str, str | int | float | bool | None]) -> Iterable[str]:
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        # SVG has attributes in camel case; HTML is indifferent to case.
        name = key.rstrip("_").replace("_", "-")
        if not NAME.match(name) or name.lower().startswith("on") or name.lower() in ("style", "src", "srcdoc"):
            raise ValueError(f"attribute {name!r} is not allowed")
        if value is True:
            yield f" {name}"
            continue
        if name == "href" and not str(value).startswith(("#", "data:,")):
            raise ValueError(f"a link may only lead within the page, not to {value!r}")
        yield f' {name}="{escape(str(value))}"'


def png(data: str, **attributes: str | int | float) -> Markup:
    """An SVG image of a PNG file in base64: the one thing that is not a link within the page. Raises ValueError."""
    if not PNG.match(data):
        raise ValueError("not a PNG file in base64")
    return Markup(f'<image href="data:image/png;base64,{data}"{"".join(_attributes(dict(attributes)))}/>')


def raw(name: str, text: str) -> Markup:
    """A `script` or `style` element around a shipped static file. Raises ValueError if the text could end it."""
    if name not in ("script", "style"):
        raise ValueError(f"{name} is not a raw text element")
    if "</" in text or "<!--" in text:
        raise ValueError(f"'</' or '<!--' in a <{name}> could end it")
    return Markup(f"<{name}>{text}</{name}>")
