"""Compressed bytes come out whole, or the file is bad."""

import bz2
import gzip
import io
import lzma

import pyarrow as pa
import pytest

from pipeline.errors import StorageError
from pipeline.sources.compression import READ_BYTES, decompressed
from pipeline.sources.formats import compression_of, delimiter_of, format_of
from pipeline.sources.reasons import BadFileError, Reason

DATA = b"".join(b"line %d\n" % number for number in range(20_000))
COMPRESS = {
    "gzip": gzip.compress,
    "zstd": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


def read_all(data, compression, size=5_000):
    stream = decompressed(io.BytesIO(data), compression, "the file")
    parts = []
    while part := stream.read(size):
        assert len(part) <= size
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("compression", COMPRESS)
def test_one_or_several_members_come_out_whole(compression):
    packed = COMPRESS[compression](DATA)
    assert read_all(packed, compression) == DATA
    assert read_all(packed + packed, compression) == DATA + DATA
    assert read_all(COMPRESS[compression](b""), compression) == b""


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_file_cut_anywhere_is_truncated(compression):
    packed = COMPRESS[compression](DATA)
    for length in (0, 3, len(packed) // 2, len(packed) - 3, len(packed) - 1):
        with pytest.raises(BadFileError) as caught:
            read_all(packed[:length], compression)
        assert caught.value.reason is Reason.TRUNCATED_FILE, length
        assert "the file: the " in str(caught.value)


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_damaged_file_is_bad(compression):
    packed = bytearray(COMPRESS[compression](DATA))
    # Zstandard files have a check sum only if their writer adds one, and this one does not.
    for place in (0, len(packed) // 3)[: 1 if compression == "zstd" else 2]:
        damaged = packed.copy()
        damaged[place] ^= 0x55
        with pytest.raises(BadFileError):
            read_all(bytes(damaged), compression)
    with pytest.raises(BadFileError):
        read_all(bytes(packed) + b"garbage", compression)


@pytest.mark.parametrize("compression", COMPRESS)
def test_what_the_store_reports_is_not_taken_for_a_damaged_file(compression):
    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 100:
                raise StorageError("the store failed")
            return super().read(50)

        def readinto(self, buffer):
            data = self.read(len(buffer))
            buffer[: len(data)] = data
            return len(data)

    stream = decompressed(Failing(COMPRESS[compression](DATA)), compression, "the file")
    with pytest.raises(StorageError, match="the store failed"):
        list(iter(lambda: stream.read(READ_BYTES), b""))


@pytest.mark.parametrize("compression", COMPRESS)
def test_data_that_expands_without_end_is_given_out_in_small_pieces(compression):
    bomb = COMPRESS[compression](bytes(64 << 20))
    assert len(bomb) < 1 << 20
    stream = decompressed(io.BytesIO(bomb), compression, "the file")
    assert len(stream.read(1_000)) <= 1_000


def test_an_xz_file_may_not_ask_for_much_memory():
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    encoder = lzma.LZMACompressor(filters=filters)
    packed = encoder.compress(b"a") + encoder.flush()
    with pytest.raises(BadFileError, match="[Mm]emory"):
        read_all(packed, "xz")


def test_names_tell_format_and_compression():
    assert (format_of("x/a.JSONL.gz"), compression_of("x/a.JSONL.gz")) == ("jsonl", "gzip")
    assert (format_of("a.b.tsv.zst"), delimiter_of("a.b.tsv.zst")) == ("csv", "\t")
    assert (format_of("a.csv"), delimiter_of("a.csv")) == ("csv", ",")
    assert (format_of("jsonl/a"), compression_of("gz/a")) == (None, None)
