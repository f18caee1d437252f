"""How single chunks are split into tokens."""

import pytest

from pipeline.tokenizers.words import split


def tokens(chunk):
    ends, kinds = split(chunk)
    assert len(ends) == len(kinds)
    return [chunk[start:end] for start, end in zip((0, *ends), ends, strict=False)]


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        ("don't", "do n't"),
        ("DON’T", "DO N’T"),
        ("it's", "it 's"),
        ("shouldn't've", "should n't 've"),
        ("cannot", "can not"),
        ("gonna", "gon na"),
        ("dogs'", "dogs '"),
        ("O'Neil", "O'Neil"),
        ("o'clock", "o'clock"),
        ("l'homme", "l' homme"),
        ("L'homme", "L' homme"),
        ("D'Angelo", "D'Angelo"),
        ("n't", "n't"),
        ("'s", "'s"),
        ("'90s", "'90s"),
        ("'em", "'em"),
        ("'Hello'", "' Hello '"),
    ],
)
def test_contractions_are_split_as_in_the_penn_treebank(chunk, expected):
    assert tokens(chunk) == expected.split()


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        ("Mr.", "Mr."),
        ("etc.,", "etc. ,"),
        ("U.S.", "U.S."),
        ("U.S.)", "U.S. )"),
        ("e.g.,", "e.g. ,"),
        ("J.", "J."),
        ("I.", "I ."),
        ("end.", "end ."),
        ("mass.", "mass ."),
        ("Mass.", "Mass."),
        ("wait...", "wait ..."),
        ("etc...", "etc ..."),
        ("what?!", "what ?!"),
        ("(yes)", "( yes )"),
        ('"Hi,"', '" Hi , "'),
        ("“Hi”", "“ Hi ”"),
        ("''quoted''", "'' quoted ''"),
        ("word--word", "word -- word"),
        ("a—b", "a — b"),
        ("====", "===="),
    ],
)
def test_punctuation_is_set_apart_but_for_the_stop_of_an_abbreviation(chunk, expected):
    assert tokens(chunk) == expected.split()


@pytest.mark.parametrize(
    "chunk",
    [
        "3.14",
        "1,000,000",
        "10:30",
        "1/2",
        "2004-05-01",
        "1990s",
        "3rd",
        ".05",
        "15-year-old",
        "AT&T",
        "snake_case",
        "__init__",
        "torch.nn.Module",
        "file.py",
        "C++",
        "C#",
        "#hashtag",
        "@user",
        "http://example.com/a(b)?q=1&r=2",
        "https://example.com/path_(x)",
        "www.example.com",
        "example.com/a/b",
        "some.one+tag@mail.example.org",
        "someone@HOST",
        "/usr/lib/python3.11/site.py",
        "~/notes/a.txt",
        "../up/here",
        ":-)",
        ":D",
        "<3",
        "👨‍👩‍👧",
        "🇩🇪",
        "👍🏽",
        "é",
        "e\u0301te\u0301",
        "नमस्ते",
        "می‌خواهم",
        "co\u00adop",
    ],
)
def test_these_stay_whole(chunk):
    assert tokens(chunk) == [chunk]


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        ("(http://example.com/a).", "( http://example.com/a ) ."),
        ("<a@b.org>,", "< a@b.org > ,"),
        ("$10.50,", "$ 10.50 ,"),
        ("US$10", "US$ 10"),
        ("50%", "50 %"),
        ("and/or", "and / or"),
        ("你好，world", "你 好 ， world"),
        ("great:)", "great :)"),
        ("👍👍", "👍 👍"),
        ("C++,", "C++ ,"),
    ],
)
def test_what_stands_around_them_is_set_apart(chunk, expected):
    assert tokens(chunk) == expected.split()


def test_a_chunk_of_any_length_is_covered():
    for chunk in ("a" * 70_000, "." * 70_000, "(" * 1_000, "a.b-c'd/" * 5_000, "@" * 1_000):
        assert "".join(tokens(chunk)) == chunk
