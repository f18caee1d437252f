"""Tokenised tables: positions, limits, normalisation, and what holds for any text."""

import hashlib
import json
import lzma
import subprocess
import sys
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.config import TextConfig
from pipeline.errors import ConfigError
from pipeline.records import TOKEN_FIELDS
from pipeline.text import STRETCH_BYTES, has_tokens, normalise, tokenise, tokenizer_fingerprint
from pipeline.tokenizers.blanks import BLANK_CHARACTERS

TOKENIZERS = ("words", "chinese", "pretokenized")
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
# Text in which the characters that rules look at are frequent.
tricky_text = st.text(
    st.sampled_from(
        "aAb1 .,'’\"-/:@#&$%!?()…\n\r\t\0\x85\u00a0\u00ad\u200b\u200d\u2028\ufeff好。！é\u0301👍🏽🇩"
    ),
    max_size=80,
)


def table(*texts):
    return pa.table(
        {"id": [str(i) for i in range(len(texts))], "text": pa.array(texts, pa.string())}
    )


def rows(texts, **config):
    return tokenise(table(*texts), TextConfig(**config)).to_pylist()


def words_of(text, **config):
    return rows([text], **config)[0]["tokens"]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(texts=st.lists(any_text | tricky_text, max_size=5))
@example(texts=["", "", "a"])
@example(texts=["a\r\n\r\nb", "\0", "\ufeffx", "a\u3000b"])
def test_positions_give_the_tokens_and_leave_out_only_blanks(tokenizer, texts):
    config = TextConfig(tokenizer=tokenizer)
    found = tokenise(table(*texts), config, keep_text=True)
    found.validate(full=True)
    blanks = set(" \t\r\n") if tokenizer == "pretokenized" else set(BLANK_CHARACTERS)
    for row in found.to_pylist():
        text = row["text"]
        spans = list(zip(row["token_starts"], row["token_ends"], strict=True))
        assert [text[start:end] for start, end in spans] == row["tokens"]
        assert all(start < end for start, end in spans)
        covered = {place for start, end in spans for place in range(start, end)}
        assert sum(end - start for start, end in spans) == len(covered)
        assert {text[place] for place in set(range(len(text))) - covered} <= blanks
        assert sum(row["sentence_lengths"]) == len(spans)
        assert 0 not in row["sentence_lengths"]
    assert has_tokens(pa.array(texts, pa.string()), config).to_pylist() == [
        bool(row["tokens"]) for row in found.to_pylist()
    ]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(texts=st.lists(any_text | tricky_text, min_size=1, max_size=6))
def test_a_documents_tokens_do_not_depend_on_its_neighbours(tokenizer, texts):
    together = rows(texts, tokenizer=tokenizer)
    alone = [rows([text], tokenizer=tokenizer)[0] for text in texts]
    assert [row | {"id": None} for row in together] == [row | {"id": None} for row in alone]


@given(text=tricky_text, max_sentence=st.integers(1, 5), max_document=st.integers(1, 12))
def test_limits_cut_and_split_and_count_what_they_do(text, max_sentence, max_document):
    free = rows([text])[0]
    limited = rows([text], max_sentence_tokens=max_sentence, max_document_tokens=max_document)[0]
    num_kept = min(len(free["tokens"]), max_document)
    assert limited["tokens"] == free["tokens"][:num_kept]
    assert limited["num_cut_tokens"] == len(free["tokens"]) - num_kept
    expected, num_split, left = [], 0, num_kept
    for length in free["sentence_lengths"]:
        length = min(length, left)
        left -= length
        num_split += length > max_sentence
        expected += [max_sentence] * (length // max_sentence)
        expected += [length % max_sentence] if length % max_sentence else []
    assert limited["sentence_lengths"] == expected
    assert limited["num_split_sentences"] == num_split


def test_the_new_columns_stand_in_the_place_of_the_text():
    documents = pa.table({"id": ["a"], "text": ["b c"], "lang": ["en"]})
    names = [field.name for field in TOKEN_FIELDS]
    assert tokenise(documents, TextConfig()).schema.names == ["id", *names, "lang"]
    kept = tokenise(documents, TextConfig(), keep_text=True)
    assert kept.schema.names == ["id", "text", *names, "lang"]
    assert [kept.schema.field(name) for name in names] == list(TOKEN_FIELDS)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_an_empty_table_keeps_its_schema(tokenizer):
    config = TextConfig(tokenizer=tokenizer)
    empty = tokenise(table("a").slice(0, 0), config)
    assert empty.schema.equals(tokenise(table("a"), config).schema)
    assert empty.num_rows == 0


def test_chunked_and_sliced_tables_give_the_same_rows():
    texts = [f"Number {i}. It's here." for i in range(50)]
    whole = tokenise(table(*texts), TextConfig()).to_pylist()
    parts = pa.concat_tables([table(*texts).slice(0, 13), table(*texts).slice(13)])
    assert tokenise(parts, TextConfig()).to_pylist() == whole
    assert tokenise(table(*texts).slice(7, 9), TextConfig()).to_pylist() == whole[7:16]


def test_a_newline_ends_a_pretokenized_sentence_and_other_spaces_belong_to_tokens():
    text = "a\u00a0b c\td\r\n\n \n\u3000 e\r\nf"
    row = rows([text], tokenizer="pretokenized")[0]
    assert row["tokens"] == ["a\u00a0b", "c", "d", "\u3000", "e", "f"]
    assert row["sentence_lengths"] == [3, 2, 1]


@given(text=any_text)
def test_normalising_gives_the_normal_form_and_leaves_nulls(text):
    array = pa.array([text, None, "ascii", "e\u0301"])
    for form in ("NFC", "NFKC"):
        expected = [
            None if value is None else unicodedata.normalize(form, value)
            for value in array.to_pylist()
        ]
        assert normalise(array, form).to_pylist() == expected
    assert normalise(array, None) is array


def test_every_tokeniser_has_a_fingerprint_of_its_own():
    found = {tokenizer_fingerprint(TextConfig(tokenizer=name)) for name in TOKENIZERS}
    assert len(found) == len(TOKENIZERS)
    assert all(name[-1].isdigit() for name in found)


PINNED_TEXT = """\
Dr. O'Neil didn't pay US$1,000.50 to AT&T on 3. Oktober... "Really?" she asked :)

- see https://example.com/a_(b), me@example.org or /usr/lib/x.so!
* e.g. C++, v2.0.1, 15-year-old's 👩‍🔬🇩🇪 café; cannot l'été №5 好吗？“是的！”
The U.S. Senate met Mr. J. R. Smith at 10:30 a.m. No. 7 won. यह है।
"""
PINNED = {
    "words-1": "37b780154191b0be",
    "pretokenized-1": "761c26e356c42a6d",
}


@pytest.mark.parametrize("tokenizer", ["words", "pretokenized"])
def test_the_fingerprint_names_exactly_these_tokens(tokenizer):
    """Fails when rules change: then give the tokeniser a new fingerprint, and this a new pin."""
    config = TextConfig(tokenizer=tokenizer)
    row = rows([PINNED_TEXT], tokenizer=tokenizer)[0]
    content = json.dumps([row["tokens"], row["sentence_lengths"], row["token_starts"]])
    found = hashlib.sha256(content.encode()).hexdigest()[:16]
    assert found == PINNED[tokenizer_fingerprint(config)]


def test_without_jieba_the_error_says_what_to_install(monkeypatch):
    import importlib.metadata

    from pipeline.text import make_tokeniser

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    make_tokeniser.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ConfigError, match=r'pip install "elmo-nightly\[chinese\]"'):
        tokenise(table("好"), TextConfig(tokenizer="chinese"))
    monkeypatch.undo()
    make_tokeniser.cache_clear()


def test_jieba_prints_nothing_and_leaves_no_file(tmp_path):
    code = (
        "import pyarrow as pa; from pipeline.text import tokenise;"
        "from pipeline.config import TextConfig;"
        "tokenise(pa.table({'text': ['我喜欢上海。']}), TextConfig(tokenizer='chinese'))"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    environment = {"TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout + done.stderr == b""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.shared
def test_chinese_words_and_sentences(shared):
    path = shared / "data/zh-cmrc2018/cmrc2018_trial.json.xz"
    data = json.loads(lzma.decompress(path.read_bytes()))["data"]
    texts = [paragraph["context"] for item in data for paragraph in item["paragraphs"]][:40]
    found = rows(texts, tokenizer="chinese")
    num_tokens = sum(len(row["tokens"]) for row in found)
    num_characters = sum(len(text) for text in texts)
    # Chinese words have about 1.7 characters on average, punctuation included.
    assert 1.5 < num_characters / num_tokens < 2.0
    row = rows(["韩国Nexon开发了3.5版。“好！”他说；是的"], tokenizer="chinese")[0]
    assert " ".join(row["tokens"]) == "韩国 Nexon 开发 了 3.5 版 。 “ 好 ！ ” 他 说 ； 是 的"
    assert row["sentence_lengths"] == [7, 4, 3, 2]


@pytest.mark.shared
def test_real_news_gives_sentences_of_a_sensible_length(shared):
    path = shared / "data/bbc-news/bbc.jsonl.xz"
    lines = lzma.decompress(path.read_bytes()).splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    found = tokenise(table(*texts[:500]), TextConfig())
    lengths = found["sentence_lengths"].combine_chunks().flatten().to_numpy()
    assert 18 < lengths.mean() < 26
    assert lengths.max() < 256


def test_a_large_document_is_read_in_stretches_without_losing_its_place():
    paragraph = "The café's 3rd owner, Mr. Ó Brien, said: no.\n\n"
    text = paragraph * (STRETCH_BYTES // len(paragraph) + 2_000)
    whole = tokenise(table(text), TextConfig(max_document_tokens=10**9), keep_text=True)
    starts = whole["token_starts"].combine_chunks().flatten().to_numpy()
    words = whole["tokens"].combine_chunks().flatten()
    num_words = len(words_of(paragraph))
    assert len(words) == num_words * text.count("\n\n")
    expected = words_of(paragraph)
    assert words[-num_words:].to_pylist() == words[:num_words].to_pylist() == expected
    assert (starts[-num_words:] - starts[:num_words] == len(text) - len(paragraph)).all()
    assert len(whole["sentence_lengths"][0]) == text.count("\n\n")
    limited = tokenise(table(text), TextConfig(max_document_tokens=1_000)).to_pylist()[0]
    assert len(limited["tokens"]) == 1_000
    assert limited["num_cut_tokens"] == len(words) - 1_000


@pytest.mark.parametrize(
    "piece",
    ["a", "'", "@a", "://", "www.", "n't'", "((", "好", ". ", "a\n", "\0", "👨\u200d", "./a"],
)
def test_text_made_to_be_slow_takes_time_in_proportion_to_its_length(piece):
    # With work that grows with the square of the length this would take hours.
    text = piece * (3_000_000 // len(piece.encode()))
    row = tokenise(table(text), TextConfig(max_document_tokens=10)).to_pylist()[0]
    assert len(row["tokens"]) + row["num_cut_tokens"] >= 0
