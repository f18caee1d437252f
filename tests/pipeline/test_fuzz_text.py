"""Any Unicode, from the bytes of a file to tokens: no crash, no hang, nothing lost between."""

import json
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config import SourceConfig, TextConfig
from pipeline.sources.discover import discover
from pipeline.sources.read import read_documents
from pipeline.text import tokenise
from pipeline.tokenizers.blanks import BLANK_CHARACTERS, MAX_CHUNK_BYTES

TOKENIZERS = ("words", "chinese", "pretokenized")
FORMS = (None, "NFC", "NFKC")
# Marks of direction, joiners, variations, tags, halves of pairs, odd blanks, non-characters.
ODD = (
    "\0\x07\x1b\x7f\x85\u00a0\u00ad\u0300\u0344\u0f73\u115f\u180e\u200b\u200d\u200e\u202e\u2028\u2066"
    "\u2069\u20e3\u3000\u3099\ud800\udbff\udc00\udfff\ufdfa\ufe0f\ufeff\uff9e\ufffc\ufffd\uffff"
    "\U0001d165\U0001f1e9\U0001f3fd\U0001f469\U000e0001\U000e007f\U0010ffff"
)
odd_text = st.text(st.sampled_from(ODD + "aA1.'-/@好。 \n") | st.characters(), max_size=40)


def read(path, texts, text):
    """The documents with their tokens, and the codes of the rejected rows, by line number."""
    lines = [json.dumps({"id": str(n), "text": value}) for n, value in enumerate(texts)]
    path.write_text("\n".join(lines))
    source = SourceConfig(path=str(path), id_column="id")
    documents, rejected = {}, {}
    for split in discover(source).splits:
        for batch in read_documents(split, source, text):
            tokens = tokenise(batch.documents, text, keep_text=True)
            tokens.validate(full=True)
            documents |= {int(row["id"]): row for row in tokens.to_pylist()}
            rejected |= {int(row.id): row.code for row in batch.rejected}
    return documents, rejected


def expected_code(text, config):
    """Why a text is rejected, from what the documentation says; None if it is not."""
    if any(unicodedata.category(character) == "Cs" for character in text):
        return "not_utf8"
    if not text:
        return "empty_text"
    normal = unicodedata.normalize(config.unicode_form, text) if config.unicode_form else text
    blanks = " \t\r\n" if config.tokenizer == "pretokenized" else BLANK_CHARACTERS
    return "no_tokens" if all(character in blanks for character in normal) else None


@settings(max_examples=40)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(texts=st.lists(odd_text, min_size=1, max_size=6), form=st.sampled_from(FORMS))
@example(texts=list(ODD), form="NFC")
@example(texts=[f"a{character}b" for character in ODD], form="NFKC")
@example(texts=[ODD.replace("\ud800\udbff\udc00\udfff", ""), ODD], form=None)
def test_any_text_is_a_document_with_tokens_or_is_rejected_for_its_reason(
    tokenizer, texts, form, tmp_path_factory
):
    config = TextConfig(tokenizer=tokenizer, unicode_form=form)
    # Two halves that meet are one character in JSON.
    texts = [
        text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass") for text in texts
    ]
    documents, rejected = read(tmp_path_factory.mktemp("text") / "a.jsonl", texts, config)
    codes = {number: expected_code(text, config) for number, text in enumerate(texts)}
    assert rejected == {number: code for number, code in codes.items() if code is not None}
    assert sorted([*documents, *rejected]) == list(range(len(texts)))
    for number, row in documents.items():
        text = texts[number]
        assert row["text"] == (unicodedata.normalize(form, text) if form else text)
        assert row["tokens"]
        places = zip(row["token_starts"], row["token_ends"], strict=True)
        assert [row["text"][start:end] for start, end in places] == row["tokens"]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize(
    "text",
    [
        "x" * 1_000_000,
        "a" + "\u0307\u0323" * 400_000,
        "\u202e" * 500_000 + "a",
        "\u0f73" * 300_000,
        "👩\u200d" * 150_000,
        "\ufdfa" * 60_000,  # 18 times as long in NFKC
        ("\0" * 1000 + "é") * 500,
        "가ᄀ\u1161" * 100_000,
    ],
    ids=["token", "marks", "bidi", "no class", "joined", "expanding", "nul", "jamo"],
)
def test_one_giant_run_of_anything_is_read_to_its_end(tokenizer, text, tmp_path):
    config = TextConfig(tokenizer=tokenizer, unicode_form="NFKC", max_document_tokens=1000)
    documents, rejected = read(tmp_path / "a.jsonl", ["before", text, "after"], config)
    assert sorted([*documents, *rejected]) == [0, 1, 2]
    assert rejected == {}
    tokens = documents[1]["tokens"]
    assert 1 <= len(tokens) <= 1000
    if tokenizer == "words":
        assert max(len(token.encode()) for token in tokens) <= MAX_CHUNK_BYTES
