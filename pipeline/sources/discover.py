"""Look at a corpus before any work: its files, their columns, and the splits to read them in.

Whatever can be wrong with the input as a whole is an error here. Footers and headers are read by
threads; rows are not read, but for the first of JSON Lines. Knows no Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa

from pipeline.config import SourceConfig
from pipeline.errors import ConfigError, SourceError
from pipeline.excerpt import bounded
from pipeline.records import RejectedRow, SourceSplit
from pipeline.sources.arrow_ipc import inspect_arrow
from pipeline.sources.columns import Roles, agree, check_columns, did_you_mean, plain_type
from pipeline.sources.csv_rows import inspect_csv
from pipeline.sources.files import SourceFile, find_files, listing_hash
from pipeline.sources.inspection import Inspection
from pipeline.sources.jsonl import inspect_jsonl
from pipeline.sources.parquet import inspect_parquet
from pipeline.sources.read import bad_file_row
from pipeline.sources.reasons import BadFileError
from pipeline.sources.text_files import inspect_text

NUM_THREADS = 32

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Discovery:
    """What a corpus consists of.

    `splits` are sorted by path and place, `files` by path. `columns` are the partition columns
    (string), then the carried columns, as they are in every document table. `rejected` holds the
    files that could not be opened, `ignored` the URLs of files that stand for no format.
    """

    splits: tuple[SourceSplit, ...]
    files: tuple[SourceFile, ...]
    columns: pa.Schema
    carried_fields: tuple[pa.Field, ...]
    rejected: tuple[RejectedRow, ...]
    ignored: tuple[str, ...]
    listing_hash: str

    @property
    def files_rejected(self) -> int:
        """How many files were rejected: of what they held, nothing is known."""
        return len(self.rejected)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    @classmethod
    def nothing(cls) -> Discovery:
        """A corpus without files."""
        return cls((), (), pa.schema([]), (), (), (), listing_hash(()))

    def restricted(self, files: frozenset[str]) -> Discovery:
        """The same corpus as if only these files (URLs) of it were there."""
        return replace(
            self,
            splits=tuple(split for split in self.splits if split.path in files),
            files=tuple(file for file in self.files if file.path in files),
            rejected=tuple(row for row in self.rejected if row.source in files),
        )


def discover(source: SourceConfig) -> Discovery:
    """List and check the input.

    Raises:
        SourceError: nothing is there; a file lacks a column or has it with another type; a file is
            bad (or all are, if bad files are to be rejected).
        ConfigError: a column is named twice, or the store is not to be read so.
        StorageError: the store failed.
    """
    _check_config(source)
    found = find_files(source)
    if found.ignored:
        some = ", ".join(found.ignored[:3])
        log.warning("%d of the files found stand for no format: %s", len(found.ignored), some)
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="discover") as pool:
        results = list(pool.map(partial(_inspect, source), found.files))
    bad = [
        bad_file_row(file.path, result)
        for file, result in zip(found.files, results, strict=True)
        if isinstance(result, BadFileError)
    ]
    if bad and (source.on_bad_file == "error" or len(bad) == len(results)):
        raise SourceError(_bad_files_message(bad, len(results)))
    good = [
        (file, result)
        for file, result in zip(found.files, results, strict=True)
        if isinstance(result, Inspection)
    ]
    for file, inspection in good:
        _check_file(source, file, inspection)
    _check_samples(source, [(file, inspection) for file, inspection in good])
    columns = _output_columns(source, good)
    return Discovery(
        splits=tuple(_splits(good, columns)),
        files=found.files,
        columns=columns,
        carried_fields=tuple(columns.field(name) for name in source.carry_columns),
        rejected=tuple(bad),
        ignored=found.ignored,
        listing_hash=listing_hash(found.files),
    )


def _check_config(source: SourceConfig) -> None:
    for key in ("partition_columns", "carry_columns", "text_columns"):
        names = getattr(source, key)
        if len(set(names)) < len(names):
            raise ConfigError(f"source.{key}: {list(names)} names a column twice")
    if "text" in source.partition_columns:
        raise ConfigError("source.partition_columns: 'text' is the text and cannot partition it")


def _inspect(source: SourceConfig, file: SourceFile) -> Inspection | BadFileError:
    roles = Roles.of(source, dict(file.hive_keys))
    try:
        if file.format == "parquet":
            return inspect_parquet(file, roles, source.split_bytes)
        if file.format == "arrow":
            return inspect_arrow(file, roles, source.split_bytes)
        if file.format == "csv":
            return inspect_csv(file, source)
        if file.format == "jsonl":
            return inspect_jsonl(file, source)
        return inspect_text(file, source)
    except BadFileError as error:
        return error


def _bad_files_message(bad: list[RejectedRow], num_files: int) -> str:
    more = f" (and {len(bad) - 1} more of {num_files} files)" if len(bad) > 1 else ""
    advice = "mend or remove it, or set source.on_bad_file: reject"
    if len(bad) == num_files:
        advice = "no file of the corpus can be read: is source.format right?"
    return f"{bad[0].message}{more}; {advice}"


def _check_file(source: SourceConfig, file: SourceFile, inspection: Inspection) -> None:
    roles = Roles.of(source, dict(file.hive_keys))
    if not inspection.is_sample:
        # A file without a byte has no header that could lack a column.
        required = roles.names if inspection.units or inspection.columns.types else ()
        check_columns(roles, inspection.columns, required)
        return
    # In the first rows of JSON Lines any key may be missing, but not the id and all of the text.
    if inspection.columns.types:
        required = () if roles.id is None else (roles.id,)
        if not any(name in inspection.columns.types for name in roles.text):
            required = (*required, roles.text[0])
        check_columns(roles, inspection.columns, required)


def _check_samples(source: SourceConfig, files: list[tuple[SourceFile, Inspection]]) -> None:
    """Make sure that each key is in the first rows of some file."""
    seen: dict[str, None] = {}
    for file, inspection in files:
        if not inspection.is_sample:
            return
        seen |= dict.fromkeys((*inspection.columns.types, *dict(file.hive_keys)))
    roles = Roles.of(source, ())
    for name in roles.names if seen else ():
        if name not in seen:
            raise SourceError(
                f"source.path {', '.join(source.paths)}: {roles.uses(name)} asks for {name!r}, "
                f"which is no key in the first rows of any file; found: {bounded(', '.join(seen))}"
                f"{did_you_mean(name, seen)}"
            )


def _output_columns(source: SourceConfig, files: list[tuple[SourceFile, Inspection]]) -> pa.Schema:
    def types_of(file: SourceFile, inspection: Inspection) -> dict[str, pa.DataType]:
        found = {name: plain_type(kind) for name, kind in inspection.columns.types.items()}
        return found | dict.fromkeys(dict(file.hive_keys), pa.string())

    carried = [name for name in source.carry_columns if name != "text"]
    agreed = agree(carried, ((file.path, types_of(file, found)) for file, found in files))
    return pa.schema(
        [
            *(pa.field(name, pa.string()) for name in source.partition_columns),
            *(
                pa.field("text", pa.string(), nullable=False)
                if name == "text"
                else pa.field(name, agreed[name])
                for name in source.carry_columns
            ),
        ]
    )


def _splits(
    files: list[tuple[SourceFile, Inspection]], columns: pa.Schema
) -> Iterator[SourceSplit]:
    index = 0
    for file, inspection in files:
        for unit in inspection.units:
            yield SourceSplit(
                index=index,
                path=file.path,
                format=file.format,
                start=unit.start,
                end=unit.end,
                size_bytes=unit.size_bytes,
                hive_keys=file.hive_keys,
                first_row=unit.first_row,
                version=file.version,
                columns=columns,
            )
            index += 1
