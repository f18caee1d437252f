"""Where the `words` tokeniser starts sentences."""

import pyarrow as pa
import pytest

from pipeline.config import TextConfig
from pipeline.text import tokenise


def sentences(text):
    row = tokenise(pa.table({"text": [text]}), TextConfig()).to_pylist()[0]
    found, first = [], 0
    for length in row["sentence_lengths"]:
        found.append(" ".join(row["tokens"][first : first + length]))
        first += length
    assert first == len(row["tokens"])
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One here. Two there.", ["One here .", "Two there ."]),
        ("Really? Yes! Good.", ["Really ?", "Yes !", "Good ."]),
        ("it works. so be it.", ["it works .", "so be it ."]),
        ("Mr. Smith met Dr. Jones.", ["Mr. Smith met Dr. Jones ."]),
        ("J. R. R. Tolkien wrote.", ["J. R. R. Tolkien wrote ."]),
        ("In the U.S. Senate.", ["In the U.S. Senate ."]),
        ("In the U.S. The Senate.", ["In the U.S.", "The Senate ."]),
        ("Pears, plums etc. They ripen.", ["Pears , plums etc.", "They ripen ."]),
        ("See No. 5 and Fig. 3 there.", ["See No . 5 and Fig . 3 there ."]),
        ("He said no. 5 came.", ["He said no . 5 came ."]),
        ("Am 3. Oktober kam er.", ["Am 3 . Oktober kam er ."]),
        ("It is 3.5 long. Next.", ["It is 3.5 long .", "Next ."]),
        ('"Stop." He went.', ['" Stop . "', "He went ."]),
        ('"What?" he asked.', ['" What ? " he asked .']),
        ("(He left.) She came.", ["( He left . )", "She came ."]),
        ('He said: "Go. Now."', ['He said : " Go .', 'Now . "']),
        ("Wait... what?", ["Wait ... what ?"]),
        ("Wait... What?", ["Wait ...", "What ?"]),
        ("好。很好！Yes", ["好 。", "很 好 ！", "Yes"]),
        ("Fine :) The end.", ["Fine :)", "The end ."]),
        ("यह है। वह था।", ["यह है ।", "वह था ।"]),
        ("1. First. 2. Second.", ["1 . First .", "2 . Second ."]),
    ],
)
def test_full_stops_quotes_and_abbreviations(text, expected):
    assert sentences(text) == expected


def test_a_blank_line_ends_a_sentence():
    assert sentences("A heading\n\nand more\n \nlast") == ["A heading", "and more", "last"]


def test_a_title_above_its_text_is_a_sentence():
    body = "The text goes on for a good while and is longer than its title."
    assert sentences(f"A title\n{body}") == ["A title", body[:-1] + " ."]


def test_list_items_are_sentences():
    text = "Buy:\n- milk from the farm\n- bread\n* salt"
    assert sentences(text) == ["Buy :", "- milk from the farm", "- bread", "* salt"]


def test_wrapped_lines_are_joined():
    text = (
        "It was the best of times, it was the worst of times, it was the age of\n"
        "wisdom, it was the age of foolishness, it was the epoch of belief, it\n"
        "was the epoch of incredulity, it was the season of Light, it was the\n"
        "season of Darkness. It was the spring of hope.\n"
    )
    assert len(sentences(text)) == 2


def test_lines_ended_on_purpose_are_not_joined():
    lines = ["Ada Lovelace, mathematician", "Grace Hopper", "Alan Turing of Wilmslow, Cheshire"]
    assert sentences("\n".join(lines)) == [line.replace(",", " ,") for line in lines]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r", "\v", "\u0085", "\u2028"])
def test_all_line_breaks_count_alike(newline):
    assert sentences("One\n\ntwo\nthree.".replace("\n", newline)) == ["One", "two", "three ."]
