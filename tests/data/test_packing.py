"""Packing: nothing is lost, nothing is predicted across a boundary, and bytes are counted exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from understudy.core.records.errors import BadData
from understudy.data import Document, pack, tokenise

documents = st.lists(st.lists(st.integers(0, 50), max_size=30), max_size=12).filter(lambda given: any(given))
contexts = st.integers(2, 20)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Byte-level BPE with a few merges; <|endoftext|> is id 0."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    built.train_from_iterator(["the cat sat on the mat, the café"] * 9, trainer)
    return built


def test_two_documents_in_rows_of_four():
    packed = pack([[5, 6, 7], [8, 9]], context=4, pad=1)
    assert packed.tokens.tolist() == [[5, 6, 7, 8], [9, 1, 1, 1]]
    assert packed.document.tolist() == [[0, 0, 0, 1], [1, -1, -1, -1]]
    assert packed.position.tolist() == [[0, 1, 2, 0], [1, 0, 0, 0]]
    assert packed.targets.tolist() == [[6, 7, -100, -100], [-100] * 4]
    assert packed.n_tokens == 5
    assert len(packed) == 2


@given(documents, contexts)
def test_unpacking_gives_back_every_document(given_ids, context):
    packed = pack(given_ids, context)
    assert [ids.tolist() for ids in packed.unpack()] == [ids for ids in given_ids if ids]
    assert packed.n_tokens == sum(map(len, given_ids))
    assert len(packed) * context - packed.n_tokens < context


@given(documents, contexts)
def test_every_target_is_the_next_token_of_the_same_document(given_ids, context):
    packed, kept = pack(given_ids, context), [ids for ids in given_ids if ids]
    targets = packed.targets
    assert (targets[:, -1] == -100).all()
    for row, column in (targets != -100).nonzero().tolist():
        document, position = packed.document[row, column], packed.position[row, column]
        assert targets[row, column] == kept[document][position + 1]
    n_boundaries = sum((index + 1) % context != 0 for index in _ends(kept))
    assert (targets == -100).sum() == len(packed) + n_boundaries + (~packed.mask[:, :-1]).sum()


def _ends(kept: list[list[int]]) -> list[int]:
    """Place of each document's last token in the stream."""
    return [sum(map(len, kept[: number + 1])) - 1 for number in range(len(kept))]


@given(documents, contexts, st.data())
def test_a_batch_is_the_rows_asked_for(given_ids, context, data):
    packed = pack(given_ids, context)
    rows = data.draw(st.lists(st.integers(0, len(packed) - 1), min_size=1, max_size=5))
    batch = packed.batch(rows)
    assert torch.equal(batch.inputs["input_ids"], packed.tokens[rows].long())
    assert torch.equal(batch.targets, packed.targets[rows])
    assert torch.equal(batch.mask, packed.mask[rows])
    assert torch.equal(batch.tags["document"], packed.document[rows].long())
    assert torch.equal(batch.tags["position"], packed.position[rows].long())
    assert ("attention_mask" in batch.inputs) == (not packed.mask[rows].all())


@settings(deadline=None)
@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=5), context=contexts)
def test_bytes_of_tokens_sum_to_the_text(tokenizer, texts, context):
    given_documents = [Document(str(number), text) for number, text in enumerate(texts)]
    packed = pack(tokenise(given_documents, tokenizer), context)
    for number, document in enumerate(given_documents):
        assert packed.n_bytes[packed.document == number].sum() == document.n_bytes
    assert (packed.n_bytes >= 0).all()
    # what is not scored is what stands in the first column of a row
    assert packed.scored_bytes().sum() == packed.n_bytes.sum() - packed.n_bytes[:, 0].sum()
    assert (packed.scored_bytes()[packed.targets == -100] == 0).all()


def test_a_character_split_over_tokens_counts_once(tokenizer):
    [tokens] = tokenise([Document("euro", "a€b")], tokenizer)
    assert len(tokens.ids) == 1 + 5
    assert tokens.n_bytes[:2] == [0, 1]
    assert sum(tokens.n_bytes) == 5


def test_documents_are_opened_by_the_separator(tokenizer):
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    for either in (tokenizer, wrapped):
        opened = list(tokenise([Document("a", "the cat"), Document("b", "sat")], either))
        assert [tokens.ids[0] for tokens in opened] == [0, 0]
        assert tokenizer.decode(opened[1].ids[1:]) == "sat"
        [own] = tokenise([Document("a", "the cat")], either, separator=7)
        assert own.ids == [7, *opened[0].ids[1:]]
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    [plain] = tokenise([Document("b", "sat")], bare)
    assert plain.ids == opened[1].ids[1:]


@given(documents, contexts, st.integers(0, 50))
def test_every_row_can_begin_with_an_opening(given_ids, context, opening):
    plain, packed = pack(given_ids, context), pack(given_ids, context, opening=opening)
    assert (packed.tokens[:, 0] == opening).all()
    assert [ids.tolist() for ids in packed.unpack()] == [ids for ids in given_ids if ids]
    assert torch.equal(packed.tokens[packed.document >= 0], plain.tokens[plain.document >= 0])
    put_there = packed.mask & (packed.document < 0)
    assert not put_there[:, 1:].any()
    assert (packed.targets[put_there] == -100).all(), "nothing in the middle of a document follows from an opening"
    own = (packed.tokens[:, 0] == opening) & (packed.document[:, 0] >= 0)
    assert torch.equal(own, ~put_there[:, 0]), "a document's own separator opens a row; there are never two"


@given(documents, st.integers(4, 20), st.integers(1, 2))
def test_places_that_are_skipped_are_attended_to_and_do_not_count(given_ids, context, skip):
    plain, packed = pack(given_ids, context), pack(given_ids, context, skip_first=skip)
    all_rows, whole = packed.batch(slice(None)), plain.batch(slice(None))
    assert all(torch.equal(all_rows.inputs[k], whole.inputs[k]) for k in whole.inputs)
    assert all_rows.inputs.keys() == whole.inputs.keys()
    assert not all_rows.mask[:, :skip].any()
    assert torch.equal(all_rows.mask[:, skip:], whole.mask[:, skip:])
    assert (all_rows.targets[:, :skip] == -100).all()
    assert torch.equal(all_rows.targets[:, skip:], whole.targets[:, skip:])


def test_a_row_without_a_place_that_counts_is_refused():
    with pytest.raises(BadData, match="behind the 2 that are left out; context must be at least 4"):
        pack([[1, 2, 3, 4]], context=3, skip_first=2)


def test_enough_stops_an_endless_source():
    def endless():
        while True:
            yield [1, 2, 3]

    assert pack(endless(), context=4, enough=10).n_tokens == 12


def test_errors_say_what_is_missing():
    with pytest.raises(BadData, match="no token to pack"):
        pack([[], []], context=8)
    with pytest.raises(BadData, match="at least 2"):
        pack([[1, 2]], context=1)
    with pytest.raises(BadData, match="from token ids alone"):
        pack([[1, 2]], context=2).scored_bytes()
