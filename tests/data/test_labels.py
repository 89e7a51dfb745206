"""Labels: fields beside the text become columns, laid out on the tokens they belong to."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from understudy.core.records.errors import UnknownName
from understudy.data import Column, Document, TextFiles, Tokens, column, pack, tokenise


@pytest.fixture(scope="module")
def characters() -> Tokenizer:
    """Every ASCII byte is a token; <|endoftext|> is id 0."""
    words = {"<|endoftext|>": 0} | {c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet(), start=1)}
    built = Tokenizer(models.BPE(vocab=words, merges=[]))
    built.pre_tokenizer, built.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return built


def test_fields_of_a_row_become_labels_and_spans():
    row = {"text": "abc", "language": "de", "year": 1999, "ok": True, "none": None, "list": [1], "who": [[0, 2, "x"]]}
    document = Document.from_row("d", row, "text")
    assert document.labels == {"language": "de", "year": "1999", "ok": "True"}
    assert document.spans["who"] == ((0, 2, "x"),)
    assert set(document.spans) == {"who"}


def test_an_empty_list_of_spans_is_a_column_with_no_label():
    assert Document.from_row("d", {"text": "abc", "who": []}, "text").spans == {"who": ()}


def test_cutting_a_document_moves_its_spans():
    document = Document("d", "0123456789", {}, {"who": ((0, 3, "a"), (2, 8, "b"), (9, 10, "c"))})
    assert document.cut(2, 9).text == "2345678"
    assert document.cut(2, 9).spans["who"] == ((0, 1, "a"), (0, 6, "b"))


def test_both_sides_of_a_few_documents_keep_the_labels_of_their_characters(tmp_path):
    """The last tenth of a document is held out: its spans are those of the same characters."""
    text = "a" * 50 + "b" * 50
    row = {"text": text, "language": "xx", "letter": [[0, 50, "a"], [50, 100, "b"]]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    for split in ("train", "held_out"):
        [document] = TextFiles(str(tmp_path / "x.jsonl"), split)
        assert document.labels == {"language": "xx"}
        for start, end, label in document.spans["letter"]:
            assert set(document.text[start:end]) == {label}


def test_every_place_carries_the_label_of_the_token_it_predicts():
    documents = [Tokens([5, 6, 7], labels={"l": "de"}), Tokens([8, 9], labels={}), Tokens([3, 3], labels={"l": "en"})]
    packed = pack(documents, context=4)
    found = column(packed, "l", "data")
    assert found.values == ("de", "en")
    # 5 6 7 8 | 9 3 3 .: 5 predicts 6, 6 predicts 7; 8 has no label; the first 3 predicts the second
    assert found.codes.tolist() == [[0, 0, -1, -1], [-1, 1, -1, -1]]


def test_spans_reach_the_tokens_whose_last_character_they_hold(characters):
    document = Document("d", "héllo wörld", {"l": "x"}, {"part": ((0, 5, "first"), (6, 11, "second"))})
    [tokens] = tokenise([document], characters)
    packed = pack([tokens], context=16)
    found, ids = column(packed, "part", "data"), packed.tokens[0]
    labelled: dict[int, list[int]] = {0: [], 1: [], -1: []}
    for place in range(len(ids) - 1):
        labelled[int(found.codes[0, place])].append(int(ids[place + 1]))
    assert characters.decode(labelled[0]) == "héllo"
    assert characters.decode(labelled[1]) == "wörld"
    assert tokens.labels["l"] == "x"


def test_openings_of_rows_have_no_label():
    packed = pack([Tokens([0, 1, 2, 3, 4, 5], labels={"l": "de"})], context=4, opening=0)
    assert packed.tokens.tolist() == [[0, 1, 2, 3], [0, 4, 5, 0]]
    assert column(packed, "l", "data").codes.tolist() == [[0, 0, 0, -1], [-1, 0, -1, -1]]


def test_the_largest_values_are_kept_and_the_rest_are_one():
    codes = torch.tensor([[0, 0, 0, 1, 2, 2, 3, -1]])
    found = Column("l", ("a", "b", "c", "d"), codes).largest(torch.tensor([0]), most=2)
    assert found.values == ("a", "c", "other (2 values)")
    assert found.codes.tolist() == [[0, 0, 0, 2, 1, 1, 2, -1]]
    whole = Column("l", ("a", "b", "c", "d"), codes)
    assert whole.largest(torch.tensor([0]), most=4) is whole


def test_a_column_that_is_not_there_is_refused_with_those_that_are():
    packed = pack([Tokens([1, 2], labels={"language": "de", "source": "wiki"})], context=4)
    with pytest.raises(UnknownName, match=r"'langauge' is not a known column of text:x. Did you mean language\?"):
        column(packed, "langauge", "text:x")
    with pytest.raises(UnknownName, match="Labels come from the fields"):
        column(pack([[1, 2]], context=4), "language", "text:x")
