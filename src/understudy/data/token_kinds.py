"""Token kinds: what each token of a Python source is to Python: a keyword, a number, a comment, ...

The lexer is written here and never stops: a file in Python 2, cut off or wrongly decoded is labelled as far as it can
be read. Labels are the same under every version of Python, but for its keywords and builtins; the standard library's
tokenizer raises on such files and splits f-strings from 3.12 on.
"""

import builtins
import keyword
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int8

KINDS = (
    "other",
    "keyword",
    "name.definition",
    "name.attribute",
    "name.builtin",
    "name.new",
    "name.repeat",
    "number",
    "string",
    "docstring",
    "comment",
    "operator",
    "layout",
)
"""`name.definition`: the name after def or class. `name.attribute`: after a dot. `name.new`: any other name not seen
before in the document, in any role. `operator`: brackets and punctuation too. `layout`: line ends and spaces."""
OTHER, KEYWORD, DEFINITION, ATTRIBUTE, BUILTIN, NEW, REPEAT = range(7)
NUMBER, STRING, DOCSTRING, COMMENT, OPERATOR, LAYOUT = range(7, 13)

_KEYWORDS = frozenset(keyword.kwlist)
_BUILTINS = frozenset(n for n in dir(builtins) if not n.startswith("_")) | {"__import__"}
_ITEM = re.compile(
    r"""
      (?P<space>[ \t\f]+ | \\\r?\n | \A\ufeff)
    | (?P<newline>\r\n|\r|\n)
    | (?P<comment>\#[^\r\n]*)
    | (?P<string>[bBfFrRuU]{0,2}(?:
          \"\"\" [^"\\]* (?: (?: \\(?:.|\n) | "(?!"") ) [^"\\]* )* \"\"\"
        | \'\'\' [^'\\]* (?: (?: \\(?:.|\n) | '(?!'') ) [^'\\]* )* \'\'\'
        | "(?!"") [^"\\\r\n]* (?: \\(?:\r\n|.|\n) [^"\\\r\n]* )* "
        | '(?!'') [^'\\\r\n]* (?: \\(?:\r\n|.|\n) [^'\\\r\n]* )* '
      ))
    | (?P<broken>[bBfFrRuU]{0,2}(?: (?:\"\"\"|\'\'\') (?s:.*) | ["'] [^\r\n]* ))
    | (?P<name>[^\W\d]\w*)
    | (?P<number>(?: 0[xXbBoO][0-9a-fA-F_]+
        | (?: [0-9][0-9_]*\.?(?:[0-9][0-9_]*)? | \.[0-9][0-9_]* ) (?:[eE][+-]?[0-9][0-9_]*)? ) [jJlL]?)
    | (?P<operator>\.\.\. | != | [-+*/%@&|^~<>=.,:;()\[\]{}])
    | (?P<other>(?s:.))
    """,
    re.VERBOSE,
)


def token_kinds(text: str, offsets: Sequence[tuple[int, int]] | np.ndarray) -> Int8[np.ndarray, " n_tokens"]:
    """Index into KINDS for each token; offsets: its first and past-the-last character in the text.

    A token over several lexical items takes the kind of the item that holds its first character that is not a space.
    A token of spaces only is `layout`, or the string or comment it lies in. A token of no characters, such as a
    separator, is `other`.
    """
    spans = np.asarray(offsets, np.int64).reshape(-1, 2)
    kinds = np.full(len(spans), OTHER, np.int8)
    filled = np.flatnonzero((spans[:, 1] > spans[:, 0]) & (spans[:, 0] < len(text)))
    if len(filled) == 0:
        return kinds
    start, end = spans[filled, 0], np.minimum(spans[filled, 1], len(text))
    of_character = character_kinds(text)
    spaces = np.fromiter(map(str.isspace, text), np.bool_, len(text))
    visible = np.flatnonzero(~spaces)
    nearest = np.append(visible, len(text))[np.searchsorted(visible, start)]
    kinds[filled] = of_character[np.where(nearest < end, nearest, start)]
    return kinds


def character_kinds(text: str) -> Int8[np.ndarray, " n_characters"]:
    """Index into KINDS for each character of the text."""
    kinds: list[int] = []
    lengths: list[int] = []
    docstrings: list[int] = []  # items that are a docstring if the statement ends behind them
    seen: set[str] = set()
    depth, in_header, expecting, before = 0, False, True, ""
    for match in _ITEM.finditer(text):
        group, item = match.lastgroup, match.group()
        kind = OTHER
        if group == "space":
            kind = LAYOUT
        elif group == "comment":
            kind = COMMENT
        elif group == "newline":
            kind = LAYOUT
            if depth == 0:
                in_header, before = False, ""
                docstrings.clear()
        elif group == "string" and (expecting or docstrings) and depth == 0 and _is_plain(item):
            docstrings.append(len(kinds))
            kind, expecting, before = DOCSTRING, False, item
        else:
            if docstrings:  # "text".join(...) is an expression
                if item != ";":
                    for index in docstrings:
                        kinds[index] = STRING
                docstrings.clear()
            expecting = False
            if group == "name":
                if item in _KEYWORDS:
                    kind = KEYWORD
                    if item in ("def", "class"):  # never inside brackets, so open ones were a mistake
                        depth, in_header = 0, True
                else:
                    kind = _name_kind(item, before, seen)
                    seen.add(item)
            elif group == "operator":
                kind = OPERATOR
                if item in "([{":
                    depth += 1
                elif item in ")]}":
                    depth = max(0, depth - 1)
                elif item == ":" and in_header and depth == 0:
                    in_header, expecting = False, True
            elif group == "string":
                kind = STRING
            elif group == "number":
                kind = NUMBER
            before = item
        kinds.append(kind)
        lengths.append(len(item))
    return np.repeat(np.array(kinds, np.int8), np.array(lengths, np.int64))


def _name_kind(name: str, before: str, seen: set[str]) -> int:
    if before in ("def", "class"):
        return DEFINITION
    if before == ".":
        return ATTRIBUTE
    if name in _BUILTINS:
        return BUILTIN
    return REPEAT if name in seen else NEW


def _is_plain(string: str) -> bool:
    """Neither bytes nor a format: those are no docstrings."""
    prefix = re.split("[\"']", string, maxsplit=1)[0]
    return not set(prefix) & set("bBfF")
