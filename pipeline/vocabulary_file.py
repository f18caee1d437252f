"""Write a vocabulary file, and if asked its counts and a summary. Knows no Ray or corpus.

Each file appears whole or not at all, the vocabulary last: where it is new, the others are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from elmo_model.files import MAX_VOCABULARY_BYTES
from elmo_model.vocabulary import MARKS
from pipeline.errors import ConfigError
from pipeline.storage import Storage, open_storage
from pipeline.storage_urls import redact_url

_DIRECTORY = (
    "output.path {}: expected the name of a file, found a directory; add a name, such as "
    "vocabulary.txt"
)


def companions(url: str) -> tuple[str, str]:
    """The URLs of the counts and of the summary that belong to a vocabulary file."""
    directory, slash, name = url.rpartition("/")
    stem = os.path.splitext(name)[0]
    return f"{directory}{slash}{stem}.counts.tsv", f"{directory}{slash}{stem}.summary.json"


def check_output(url: str, *, with_counts: bool, overwrite: bool) -> None:
    """Make sure that a vocabulary may be written to `url`.

    Raises:
        ConfigError: it names no file, or a directory; or it, or with `with_counts` one of its
            companions, is there already and `overwrite` is not given.
        StorageError: the store failed.
    """
    for target in (url, *(companions(url) if with_counts else ())):
        storage, name = _locate(target)
        shown = redact_url(storage.url_of(name))
        if _is_directory(storage, name):
            raise ConfigError(_DIRECTORY.format(shown))
        if not overwrite and storage.exists(name):
            raise ConfigError(
                f"output.path {shown}: expected no file there, found one; give --overwrite to "
                "replace it, or choose another name"
            )


def write_vocabulary(url: str, counts: pa.Table, summary: Mapping[str, Any] | None) -> None:
    """Write the marks and the words of `counts`, in their order, replacing what is there.

    Args:
        url: of the file.
        counts: has the columns `word` and `count`, and at least one row. No word is a mark, occurs
            twice or cannot stand in a vocabulary file.
        summary: plain JSON types; what is not None is written beside the vocabulary, together with
            the counts, a line `word TAB count` for each.

    Raises:
        ConfigError: the file would be larger than what readers take.
        StorageError: the store failed; each file is as it was or as it should be.
    """
    words, occurrences = counts["word"], counts["count"].cast(pa.string())
    content = _lines(pa.chunked_array([pa.array(MARKS), *words.chunks]))
    if len(content) > MAX_VOCABULARY_BYTES:
        raise ConfigError(
            f"output.path {redact_url(url)}: the vocabulary would have {len(content):,} bytes, "
            f"readers take at most {MAX_VOCABULARY_BYTES:,}; lower vocabulary.max_size, or raise "
            "vocabulary.min_count"
        )
    contents = [(url, content)]
    if summary is not None:
        counts_url, summary_url = companions(url)
        lines = _lines(pc.binary_join_element_wise(words, occurrences, "\t"))
        text = json.dumps(summary, indent=2) + "\n"
        contents = [(counts_url, lines), (summary_url, text.encode()), *contents]
    for target, data in contents:
        storage, name = _locate(target)
        storage.put(name, data)


def _lines(lines: pa.ChunkedArray) -> bytes:
    array = lines.combine_chunks()
    one_list = pa.ListArray.from_arrays(pa.array([0, len(array)], pa.int32()), array)
    content: bytes = pc.binary_join(one_list, "\n")[0].as_buffer().to_pybytes()
    return content + b"\n"


def _locate(url: str) -> tuple[Storage, str]:
    directory, slash, name = url.rpartition("/")
    if name in ("", ".", ".."):
        raise ConfigError(_DIRECTORY.format(redact_url(url)))
    if not directory:
        directory = slash or "."
    elif directory.endswith("/"):  # file:///name; a bucket alone, which the storage refuses
        directory += "/"
    return open_storage(directory), name


def _is_directory(storage: Storage, name: str) -> bool:
    url = storage.url_of(name)
    return os.path.isdir(url) if storage.is_local else bool(open_storage(url).list_files())
