"""What a snapshot is, as immutable values and as the JSON of its manifest. Knows no store.

`docs/FORMAT.md` describes every key. Reading is strict: a manifest that lacks a key, or holds a
value of another type, is refused with the file and the key. Keys that are not known are skipped:
later writers of the same format version may add some, but none that a reader must know in order to
read the right rows (documents leave a snapshot by rewriting the files that hold them, so the file
list alone is always right).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError, CorruptFileError
from pipeline.extension_types import extension_names, refuse_unpickling, said_by
from pipeline.redaction import redact_values
from pipeline.storage_urls import MAX_PATH_BYTES, check_path

FORMAT_VERSION = 1
# About 300,000 files; a hostile one of this size takes less than 4 GiB of memory to refuse.
MAX_MANIFEST_BYTES = 128 << 20
RECORDED_PACKAGES = ("elmo-nightly", "pyarrow", "ray", "torch", "numpy")

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class DataFile:
    """One immutable file of vectors.

    Attributes:
        path: relative to the snapshot directory.
        num_rows: rows, of which a document may have several.
        num_documents: distinct ids.
        size_bytes: length of the file.
        sha256: of the whole file, 64 lower-case hexadecimal digits.
        partition: values of the partition columns, in their order; they stand only in the path.
        min_id: the least id by code points.
        max_id: the greatest id by code points.
    """

    path: str
    num_rows: int
    num_documents: int
    size_bytes: int
    sha256: str
    partition: Mapping[str, str | None] = field(default_factory=dict, hash=False)
    min_id: str = ""
    max_id: str = ""

    def to_json(self) -> dict[str, Any]:
        """The file as plain JSON types; `from_json` reads it back."""
        return {**vars(self), "partition": dict(self.partition)}

    @classmethod
    def from_json(cls, values: Any, where: str = "data file") -> DataFile:
        """Read what `to_json` gave.

        Args:
            values: a JSON object.
            where: what is being read, for messages.

        Raises:
            CorruptFileError: a key is missing or its value cannot be right.
        """
        reader = _Reader(values, where)
        partition = reader.mapping("partition")
        if not all(value is None or isinstance(value, str) for value in partition.values()):
            raise CorruptFileError(f"{where}: partition: a value is neither a string nor null")
        path = reader.path("path")
        return cls(
            path=path,
            num_rows=reader.count("num_rows"),
            num_documents=reader.count("num_documents"),
            size_bytes=reader.count("size_bytes"),
            sha256=reader.sha256("sha256"),
            partition=partition,
            min_id=reader.text("min_id"),
            max_id=reader.text("max_id"),
        )


@dataclass(frozen=True)
class Snapshot:
    """One committed state of the table, complete in itself.

    Attributes:
        number: 1, 2, 3 ...; the highest one is the current state.
        parent: the number that it was made from: `number` - 1, None for the first.
        created_at: ISO 8601 in UTC, to the second.
        run_id: of the run that committed it.
        idempotency_key: equal for runs with the same input, encoder and configuration.
        operation: embed, reembed, or another word for what was done.
        fingerprint: of the encoder; only vectors of equal fingerprints may be compared.
        encoder: describes the encoder, JSON types.
        config: of the run, secrets redacted.
        schema: of the whole table, partition columns (strings) last.
        partition_columns: in the order of the directories.
        files: all data files of the table.
        rejected_files: paths of the files that list the run's rejected rows.
        counts: documents, rows, added, changed, deleted, unchanged, rejected and more.
        lineage: what it was made from: source, bytes, hash of the listing, package versions.
        changes: paths of the files that list what was added, updated and deleted against the
            parent; None where that was not recorded.
        rewritten: files of the parent that were copied, some documents perhaps left out, each with
            the file of this snapshot that holds its rows now.
        moved: paths of the files that list unchanged documents which `rewritten` does not lead to.
    """

    number: int
    parent: int | None
    created_at: str
    run_id: str
    idempotency_key: str
    operation: str
    fingerprint: str
    encoder: Mapping[str, Any] = field(hash=False)
    config: Mapping[str, Any] = field(hash=False)
    schema: pa.Schema
    partition_columns: tuple[str, ...]
    files: tuple[DataFile, ...]
    rejected_files: tuple[str, ...]
    counts: Mapping[str, int] = field(hash=False)
    lineage: Mapping[str, Any] = field(hash=False)
    changes: tuple[str, ...] | None = None
    rewritten: Mapping[str, str] = field(default_factory=dict, hash=False)
    moved: tuple[str, ...] = ()

    @classmethod
    def new(cls, **values: Any) -> Snapshot:
        """A snapshot made now: all fields but `created_at`; `lineage` gains package versions.

        Secrets in `config`, `encoder` and `lineage` are redacted.
        """
        lineage = {**values.pop("lineage", {}), "versions": package_versions()}
        for name in ("files", "partition_columns", "rejected_files"):
            values[name] = tuple(values.get(name, ()))
        for name in ("config", "encoder"):
            values[name] = redact_values(values.get(name, {}), by_name=True)
        return cls(
            created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            lineage=redact_values(lineage, by_name=True),
            **values,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Arrow's own pickling forgets that the elements of a fixed_size_list are never null.
        return (Snapshot.from_json, (self.to_json(), f"snapshot {self.number}"))

    def numbered(self, parent: Snapshot | None) -> Snapshot:
        """The same content as the successor of `parent`."""
        if parent is None:
            return replace(self, number=1, parent=None)
        return replace(self, number=parent.number + 1, parent=parent.number)

    @property
    def num_documents(self) -> int:
        """Documents in the table."""
        return sum(file.num_documents for file in self.files)

    @property
    def size_bytes(self) -> int:
        """Bytes of all data files."""
        return sum(file.size_bytes for file in self.files)

    def to_json(self) -> bytes:
        """The manifest: UTF-8 JSON, indented, keys in the order of the fields."""
        values: dict[str, Any] = {"format_version": FORMAT_VERSION}
        for item in fields(self):
            values[item.name] = getattr(self, item.name)
        values["schema"] = schema_to_json(self.schema)
        values["files"] = [file.to_json() for file in self.files]
        text = json.dumps(values, ensure_ascii=False, allow_nan=False, indent=1)
        data = text.encode() + b"\n"
        if len(data) > MAX_MANIFEST_BYTES:
            raise ConfigError(
                f"snapshot {self.number}: the manifest of {len(self.files)} files would take "
                f"{len(data)} bytes of at most {MAX_MANIFEST_BYTES}; nothing was committed. Raise "
                "output.target_file_bytes, and run 'elmo snapshots compact'"
            )
        return data

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Snapshot:
        """Read a manifest.

        Args:
            data: at most 128 MiB of JSON.
            where: URL of the manifest, for messages.

        Raises:
            CorruptFileError: it is not a manifest; names the key.
            ConfigError: a later format version, which this program cannot read.
        """
        reader = _Reader(_parse(data, where), where)
        version = reader.count("format_version")
        if version != FORMAT_VERSION:
            raise ConfigError(
                f"{where}: format version {version}, this program reads version {FORMAT_VERSION}; "
                "use the release that wrote it, or a newer one"
            )
        files = reader.sequence("files")
        snapshot = cls(
            number=reader.count("number"),
            parent=reader.count("parent") if reader.value("parent") is not None else None,
            created_at=reader.text("created_at"),
            run_id=reader.text("run_id"),
            idempotency_key=reader.text("idempotency_key"),
            operation=reader.text("operation"),
            fingerprint=reader.text("fingerprint"),
            encoder=reader.mapping("encoder"),
            config=reader.mapping("config"),
            schema=schema_from_json(reader.mapping("schema"), f"{where}: schema"),
            partition_columns=reader.texts("partition_columns"),
            files=tuple(
                DataFile.from_json(file, f"{where}: files[{index}]")
                for index, file in enumerate(files)
            ),
            rejected_files=reader.texts("rejected_files"),
            counts=reader.counts("counts"),
            lineage=reader.mapping("lineage"),
            changes=reader.optional_texts("changes"),
            rewritten=reader.optional_mapping("rewritten"),
            moved=reader.optional_texts("moved") or (),
        )
        snapshot.check(where)
        return snapshot

    def check(self, where: str) -> None:
        """Make sure that the parts fit together.

        Raises:
            CorruptFileError: they do not.
        """
        columns = self.partition_columns
        if self.number < 1 or self.parent != (self.number - 1 or None):
            found = f"number {self.number}, parent {self.parent}"
            raise CorruptFileError(f"{where}: the parent must be the number before: {found}")
        last = tuple(self.schema.names[len(self.schema.names) - len(columns) :])
        if last != columns:
            raise CorruptFileError(
                f"{where}: the schema must end with the partition columns {list(columns)}, found "
                f"{self.schema.names}"
            )
        places = {
            "rejected_files": ("_rejected/", self.rejected_files),
            "changes": ("changes/", self.changes or ()),
            "moved": ("changes/", self.moved),
        }
        for key, (directory, listed) in places.items():
            for index, path in enumerate(listed):
                _check_path(path, directory, f"{where}: {key}[{index}]")
        for old, new in self.rewritten.items():
            _check_path(old, "data/", f"{where}: rewritten")
            _check_path(new, "data/", f"{where}: rewritten: {old}")
        paths = set()
        for file in self.files:
            if tuple(file.partition) != columns:
                raise CorruptFileError(
                    f"{where}: {file.path}: partition keys {list(file.partition)}, expected "
                    f"{list(columns)}"
                )
            if file.path in paths:
                raise CorruptFileError(f"{where}: {file.path}: listed twice")
            paths.add(file.path)


def schema_to_json(schema: pa.Schema) -> dict[str, Any]:
    """A schema for people (`fields`) and, exactly, for programs (`arrow_ipc`, base64)."""
    return {
        "fields": [
            {"name": item.name, "type": str(item.type), "nullable": item.nullable}
            for item in schema
        ],
        "arrow_ipc": base64.b64encode(schema.serialize()).decode(),
    }


def schema_from_json(values: Mapping[str, Any], where: str) -> pa.Schema:
    """Read what `schema_to_json` gave.

    Raises:
        CorruptFileError: it is no schema, or its two forms differ.
    """
    reader = _Reader(values, where)
    try:
        encoded = base64.b64decode(reader.text("arrow_ipc"), validate=True)
        refuse_unpickling()
        schema = pa.ipc.read_schema(pa.py_buffer(encoded))
    except (ValueError, OSError, pa.ArrowException) as error:
        said = said_by(error)
        raise CorruptFileError(f"{where}: arrow_ipc is not an Arrow schema: {said}") from None
    check_no_extension_types(schema, f"{where}: arrow_ipc")
    # The types are not compared: how Arrow spells them may change between its versions.
    listed = [item.get("name") for item in reader.sequence("fields") if isinstance(item, dict)]
    if listed != schema.names:
        raise CorruptFileError(f"{where}: fields and arrow_ipc describe different schemas")
    return schema


def check_no_extension_types(schema: pa.Schema, where: str) -> None:
    """Refuse a schema that no writer of snapshots makes: its types could run code when read.

    Raises:
        CorruptFileError: names the column and the type.
    """
    for item in schema:
        name = next(extension_names(item), None)
        if name is not None:
            raise CorruptFileError(
                f"{where}: column {item.name!r} has the extension type {name!r}; snapshots hold "
                "plain types only, so this was not written for one"
            )


def package_versions() -> dict[str, str]:
    """Versions of the packages that shape a result, those that are installed."""
    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _parse(data: bytes, where: str) -> Any:
    if len(data) > MAX_MANIFEST_BYTES:
        raise CorruptFileError(f"{where}: {len(data)} bytes, at most {MAX_MANIFEST_BYTES} expected")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{where}: not JSON ({error}); restore this file") from None


class _Reader:
    """Takes values out of a JSON object and names the key where one is not what it must be."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise CorruptFileError(f"{where}: a JSON object is expected, found {_kind(values)}")
        self._values = values
        self._where = where

    def value(self, key: str) -> Any:
        if key not in self._values:
            raise CorruptFileError(f"{self._where}: key {key!r} is missing")
        return self._values[key]

    def text(self, key: str) -> str:
        return str(self._typed(key, str, "a string"))

    def count(self, key: str) -> int:
        return _count(self.value(key), f"{self._where}: {key}")

    def mapping(self, key: str) -> dict[str, Any]:
        return dict(self._typed(key, dict, "an object"))

    def sequence(self, key: str) -> list[Any]:
        return list(self._typed(key, list, "an array"))

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.sequence(key)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise CorruptFileError(
                    f"{self._where}: {key}[{index}]: a string is expected, found {_kind(value)}"
                )
        return tuple(values)

    def optional_texts(self, key: str) -> tuple[str, ...] | None:
        return None if self._values.get(key) is None else self.texts(key)

    def optional_mapping(self, key: str) -> dict[str, Any]:
        return {} if self._values.get(key) is None else self.mapping(key)

    def counts(self, key: str) -> dict[str, int]:
        values = self.mapping(key)
        return {k: _count(v, f"{self._where}: {key}.{k}") for k, v in values.items()}

    def sha256(self, key: str) -> str:
        value = self.text(key)
        if not _SHA256.fullmatch(value):
            raise CorruptFileError(f"{self._where}: {key}: 64 hexadecimal digits are expected")
        return value

    def path(self, key: str) -> str:
        value = self.text(key)
        _check_path(value, "data/", f"{self._where}: {key}")
        return value

    def _typed(self, key: str, kind: type, expected: str) -> Any:
        value = self.value(key)
        if not isinstance(value, kind):
            raise CorruptFileError(
                f"{self._where}: {key}: {expected} is expected, found {_kind(value)}"
            )
        return value


def _check_path(value: Any, directory: str, where: str) -> None:
    """Refuse a path that leaves its place in the snapshot directory, or fits no store."""
    if not isinstance(value, str) or len(value) > MAX_PATH_BYTES:
        raise CorruptFileError(
            f"{where}: a path of at most {MAX_PATH_BYTES} characters is expected, found "
            f"{str(value)[:100]!r}"
        )
    try:
        check_path(value, value)
    except ConfigError as error:
        raise CorruptFileError(f"{where}: {error}") from None
    if not value.startswith(directory):
        raise CorruptFileError(f"{where}: {value[:300]!r} is not under {directory}")


def _count(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CorruptFileError(f"{where}: a whole number from 0 on is expected, found {value!r}")
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
