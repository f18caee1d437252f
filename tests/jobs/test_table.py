"""Text tables."""

from jobs.table import format_table


def test_numbers_stand_to_the_right_with_thousands_marks():
    text = format_table(("package", "documents"), [("numpy", 1151), ("six", None)])
    assert text.splitlines() == [
        "package  documents",
        "-------  ---------",
        "numpy        1,151",
        "six              -",
    ]


def test_a_table_without_rows_has_its_header():
    assert format_table(("a", "bc"), []) == "a  bc\n-  --"


def test_a_column_of_numbers_and_words_stands_to_the_left():
    assert format_table(("n",), [(1,), ("many",)]).splitlines()[2:] == ["1", "many"]
