"""Lines with their positions, whatever the splits and however long the lines."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources import lines as lines_module
from pipeline.sources.lines import read_lines

LIMIT = 12
content = st.lists(
    st.sampled_from([b"", b"a", b"bc", b"\r", b"x" * 11, b"y" * 12, b"z" * 13, b"w" * 40]),
    max_size=12,
).map(b"\n".join)


def expected(data, limit=LIMIT):
    """(offset, line or None if too long) of every line that ends or has a byte."""
    found, position = [], 0
    for line in data.split(b"\n"):
        if line or position + len(line) < len(data):
            held = line.removeprefix(b"\xef\xbb\xbf") if position == 0 else line
            is_short = len(held) <= limit
            found.append((position, held.removesuffix(b"\r") if is_short else None))
        position += len(line) + 1
    return found


def read(data, start=0, end=None, limit=LIMIT):
    stream = io.BytesIO(data)
    stream.seek(max(start - 1, 0))
    found = []
    for block in read_lines(stream, limit, start=start, end=end):
        found += zip(block.offsets, block.lines, strict=True)
        found += [(offset, None) for offset in block.too_long]
    return sorted(found, key=lambda item: item[0])


@pytest.fixture(autouse=True, params=[1, 3, 7, 1 << 20])
def read_bytes(request, monkeypatch):
    monkeypatch.setattr(lines_module, "READ_BYTES", request.param)


@pytest.mark.parametrize("data", [b"", b"\n", b"a", b"a\n", b"a\r\nb", b"\xef\xbb\xbfa\nb"])
def test_ends_of_lines_and_of_files(data):
    assert read(data) == expected(data)


def test_any_splits_together_give_every_line_once():
    @given(content, st.lists(st.integers(0, 150), max_size=4))
    def check(data, cuts):
        edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(data)), max(len(data), 1)]
        parts = [read(data, start, end) for start, end in zip(edges, edges[1:], strict=False)]
        assert [item for part in parts for item in part] == expected(data)

    check()


def test_a_long_line_is_passed_over_in_bounded_memory(read_bytes):
    class Endless:
        """One line of 1 GiB, of which nobody may keep much."""

        left = 1 << 30

        def read(self, size):
            if not self.left:
                return b""
            size = min(1 << 20, self.left)
            self.left -= size
            return b"a" * (size - 1) + (b"a" if self.left else b"\n")

    block = [b for b in read_lines(Endless(), 1 << 22) if b.too_long or b.lines]
    assert [b.too_long for b in block] == [[0]]
