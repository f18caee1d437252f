"""The documented outcomes are those that the code has."""

import re
from pathlib import Path

from pipeline.sources.checks import MAX_ID_BYTES
from pipeline.sources.formats import COMPRESSION_ENDINGS, FORMAT_ENDINGS
from pipeline.sources.jsonl import SAMPLE_BYTES, SAMPLE_ROWS
from pipeline.sources.reasons import Reason
from pipeline.text import STRETCH_BYTES
from pipeline.tokenizers.blanks import MAX_CHUNK_BYTES

PAGE = (Path(__file__).parents[3] / "docs/SOURCES.md").read_text(encoding="utf-8")


def test_the_table_of_reasons_has_every_code_with_its_stage():
    rows = re.findall(r"^\| `(\w+)` \| (read|parse|validate|tokenise) \| .+ \| .+ \|$", PAGE, re.M)
    assert rows == [(reason.value, reason.stage) for reason in Reason]


def test_every_reason_is_given_in_some_test_of_reading():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [reason for reason in Reason if f'"{reason.value}"' not in tests] == []


def test_formats_and_limits_are_those_of_the_code():
    for ending in (*FORMAT_ENDINGS, *COMPRESSION_ENDINGS):
        assert f"`{ending}`" in PAGE
    assert f"at most {MAX_ID_BYTES:,} bytes" in PAGE
    assert f"first {SAMPLE_ROWS} rows (or {SAMPLE_BYTES >> 10} KiB)" in PAGE
    assert f"more than {MAX_CHUNK_BYTES >> 10} KiB without a blank" in PAGE
    assert f"more than {STRETCH_BYTES >> 20} MiB" in PAGE
