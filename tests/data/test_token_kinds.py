import ast
import io
import re
import time
import tokenize
from pathlib import Path

import numpy as np
import pytest

from understudy.data.token_kinds import KINDS, character_kinds, token_kinds

SNIPPET = '''"""Module."""
import os.path  # paths

class Box(object):
    r"""A box."""

    size = 0x1F + 2.5e-3j

    def grow(self, by: int = 1) -> str:
        "Grow it."
        text = f"{self.size}" 'x'
        return text.join([by, "a\\
b"])
'''


def pieces(text: str) -> dict[str, list[str]]:
    """What each kind holds, item by item."""
    found: dict[str, list[str]] = {name: [] for name in KINDS}
    spans = [m.span() for m in re.finditer(r"\w+|[^\w\s]|\s+", text)]
    for (start, end), kind in zip(spans, token_kinds(text, spans), strict=True):
        found[KINDS[kind]].append(text[start:end])
    return found


def kind_at(text: str, part: str, nth: int = 0) -> str:
    start = [m.start() for m in re.finditer(re.escape(part), text)][nth]
    return KINDS[token_kinds(text, [(start, start + len(part))])[0]]


def test_snippet():
    found = pieces(SNIPPET)
    assert found["keyword"] == ["import", "class", "def", "return"]
    assert found["name.definition"] == ["Box", "grow"]
    assert found["name.attribute"] == ["path", "join"]
    assert found["name.builtin"] == ["object", "int", "str"]
    assert found["name.new"] == ["os", "size", "self", "by", "text"]
    assert found["name.repeat"] == ["text", "by"]
    assert found["comment"][:2] == ["#", " "]
    assert "".join(found["comment"]) == "# paths"
    for docstring in ("Module", "box", "Grow"):
        assert kind_at(SNIPPET, docstring) == "docstring"
    for string in ("{self", "'x'", '"a', 'b"'):
        assert kind_at(SNIPPET, string) == "string"
    assert kind_at(SNIPPET, "0x1F") == kind_at(SNIPPET, "2.5e-3j") == "number"
    assert kind_at(SNIPPET, "->") == kind_at(SNIPPET, "[") == kind_at(SNIPPET, ".join") == "operator"
    assert kind_at(SNIPPET, "\n    def") == "keyword"


def test_a_token_takes_the_kind_of_its_first_visible_character():
    text = "x = 'a  b'\n# c  d\ny = x"
    assert kind_at(text, " = 'a") == "operator"
    assert kind_at(text, " 'a") == "string"
    assert kind_at(text, "\n#") == "comment"
    assert kind_at(text, "\ny") == "name.new"
    assert kind_at(text, "  ", 0) == "string"
    assert kind_at(text, "  ", 1) == "comment"
    assert kind_at(text, "\n") == "layout"


def test_tokens_without_characters_are_other():
    kinds = token_kinds("x", [(0, 0), (0, 1), (1, 1), (5, 9)])
    assert [KINDS[k] for k in kinds] == ["other", "name.new", "other", "other"]
    assert kinds.dtype == np.int8
    assert len(token_kinds("", [])) == len(token_kinds("x", [])) == 0
    assert KINDS[token_kinds("", [(0, 0)])[0]] == "other"


@pytest.mark.parametrize(
    ("text", "is_docstring"),
    [
        ("'doc'\n", True),
        ("# note\n\n'doc'", True),
        ("'doc' 'doc'\n", True),
        ("'doc'; x = 1\n", True),
        ("'doc'.join(x)\n", False),
        ("f'doc'\n", False),
        ("b'doc'\n", False),
        ("x = 1\n'doc'\n", False),
        ("def f(x, y=lambda: 1) -> {1: 2}:\n    'doc'\n", True),
        ("def f(): 'doc'\n", True),
        ("if x:\n    'doc'\n", False),
        ("x = {'doc'}\n", False),
        ("class A:\n\n    # note\n    'doc'\n", True),
    ],
)
def test_docstrings(text, is_docstring):
    assert kind_at(text, "doc") == ("docstring" if is_docstring else "string")


@pytest.mark.parametrize(
    "text",
    [
        'print "two", 0777L, `x`\nexec "code"\nexcept E, e:\n',
        "def f(:\n  x = (1\nclass A:\n    'doc'\n",
        "x = 'unclosed\ny = 1\n",
        'x = 1\n"""unclosed\ny = 1\n',
        "\ufeffx = 1\r\ny = 2\rz",
        "caf\u00e9 = '\udce9' \x00 \u00a0 ? $ !\n",
        "\\",
        "f'{x!r:>{width}}' rb'\\x00' u'' '''''' \"\"",
        "",
    ],
)
def test_what_does_not_parse_is_read_as_far_as_it_can_be(text):
    kinds = character_kinds(text)
    assert len(kinds) == len(text)
    token_kinds(text, [(i, i + 1) for i in range(len(text))])


def test_reading_goes_on_after_a_mistake():
    assert kind_at("x = 'unclosed\ny = 1\n", "unclosed") == "other"
    assert kind_at("x = 'unclosed\ny = 1\n", "1") == "number"
    assert kind_at('x = 1\n"""unclosed\ny = 1\n', "y") == "other"
    assert kind_at("def f(:\n  x = (1\nclass A:\n    'doc'\n", "doc") == "docstring"
    assert kind_at('print "two"\n', "print") == "name.builtin"


MODULES = [
    Path(ast.__file__).with_name(n) for n in ("ast.py", "dataclasses.py", "argparse.py", "typing.py", "inspect.py")
]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_agrees_with_the_standard_library(path):
    """Items against `tokenize`, docstrings against `ast`, on real modules."""
    text = path.read_text()
    lines = np.cumsum([0, *(len(line) for line in text.splitlines(keepends=True))])
    kinds = character_kinds(text)
    expected = {tokenize.NUMBER: {"number"}, tokenize.COMMENT: {"comment"}, tokenize.OP: {"operator"}}
    expected[tokenize.STRING] = {"string", "docstring"}
    expected[tokenize.NAME] = {name for name in KINDS if name.startswith("name.")} | {"keyword"}
    depth = 0  # in f-strings: tokens of their own since Python 3.12, one string here
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        start, end = (lines[row - 1] + column for row, column in (token.start, token.end))
        depth += {"FSTRING_START": 1, "FSTRING_END": -1}.get(tokenize.tok_name[token.type], 0)
        if token.type in expected and not depth:
            assert {KINDS[k] for k in kinds[start:end]} <= expected[token.type], token
            assert len(set(kinds[start:end])) == 1
    docstrings = 0
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            first = node.body[0]
            start = lines[first.lineno - 1] + len(text[lines[first.lineno - 1] :].encode()[: first.col_offset].decode())
            assert KINDS[kinds[start]] == "docstring"
            docstrings += 1
    flags = np.concatenate([[False], kinds == KINDS.index("docstring"), [False]])
    assert np.count_nonzero(np.diff(flags.astype(int)) == 1) == docstrings


def test_is_fast_enough():
    """10 MB in a minute, with a wide margin."""
    text = MODULES[2].read_text()
    spans = [(i, i + 3) for i in range(0, len(text) - 3, 3)]
    start = time.perf_counter()
    token_kinds(text, spans)
    assert (time.perf_counter() - start) / len(text) * 10e6 < 60
