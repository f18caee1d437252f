"""Which columns of the input mean what, whether they are there, and on which types files agree.

Knows names and Arrow types, no data.

Types of carried columns are widened only where no value changes its meaning: integers to the wider
integer, integers beside floating-point numbers to double, all forms of strings to string, of bytes
to binary, null to anything. Partition values are strings.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.types as pt

from pipeline.config import SourceConfig
from pipeline.errors import SourceError
from pipeline.excerpt import bounded
from pipeline.extension_types import READ_TYPES, extension_names


@dataclass(frozen=True)
class FileColumns:
    """The columns of one input file: each name with its type, in the file's order."""

    path: str
    types: Mapping[str, pa.DataType]
    repeated: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Roles:
    """The columns that are read from the files of a source, by what they are for.

    `partition` and `carried` leave out what the path's hive keys give, and `text`, which is made.
    """

    id: str | None
    text: tuple[str, ...]
    partition: tuple[str, ...]
    carried: tuple[str, ...]

    @classmethod
    def of(cls, source: SourceConfig, hive_keys: Iterable[str]) -> Roles:
        """The roles in a file whose path has these hive keys: those win over columns."""
        keys = set(hive_keys)
        return cls(
            id=source.id_column,
            text=source.text_columns,
            partition=tuple(name for name in source.partition_columns if name not in keys),
            carried=tuple(
                name for name in source.carry_columns if name not in keys and name != "text"
            ),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All names once, in the order id, text, partition, carried."""
        ids = () if self.id is None else (self.id,)
        return tuple(dict.fromkeys((*ids, *self.text, *self.partition, *self.carried)))

    def uses(self, name: str) -> str:
        """The configuration key that asks for a column, for messages."""
        if name == self.id:
            return "source.id_column"
        if name in self.text:
            return "source.text_columns"
        return "source.partition_columns" if name in self.partition else "source.carry_columns"


def check_columns(roles: Roles, columns: FileColumns, required: Iterable[str]) -> None:
    """Make sure that a file has the required columns, each once and of a usable type.

    Raises:
        SourceError: names the file, the column, what was found and what may have been meant.
    """
    for name in required:
        if name not in columns.types:
            found = f"found: {bounded(', '.join(columns.types)) or 'no columns'}"
            raise SourceError(
                f"{columns.path}: {roles.uses(name)} asks for {name!r}, which is not there; "
                f"{found}{did_you_mean(name, columns.types)}"
            )
    for name in roles.names:
        if name in columns.repeated:
            raise SourceError(
                f"{columns.path}: column {name!r} is there more than once, so it is not clear "
                "which is meant; rename one"
            )
        if name in columns.types:
            _check_type(roles, columns.path, name, columns.types[name])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that looks most like `name`; empty if none does."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {bounded(by_lower[close[0]])!r}?" if close else ""


def _check_type(roles: Roles, path: str, name: str, found: pa.DataType) -> None:
    value_type = plain_type(found)
    problem = refusal(found)
    if (
        problem is None
        and name == roles.id
        and not (_is_integer(value_type) or _is_stringlike(found) or pt.is_null(value_type))
    ):
        problem = "an id is a string or an integer"
    if (
        problem is None
        and name in roles.text
        and not (_is_stringlike(found) or pt.is_null(value_type))
    ):
        problem = "text is a string"
    if problem is None and name in roles.partition and not _can_partition(value_type):
        problem = "a partition value is a string, an integer, a boolean or a date"
    if problem is not None:
        raise SourceError(
            f"{path}: {roles.uses(name)} names {name!r}, which has type {bounded(str(found))}: "
            f"{bounded(problem)}"
        )


def refusal(data_type: pa.DataType) -> str | None:
    """Why values of a type are not read, or None if they are."""
    if isinstance(data_type, pa.BaseExtensionType):
        if data_type.extension_name in READ_TYPES:
            return None
        return (
            f"the extension type {data_type.extension_name!r} is not read, because such a type may "
            "run code when it is; write the column with its storage type"
        )
    if pt.is_dictionary(data_type):
        return refusal(data_type.value_type)
    if (
        pt.is_union(data_type)
        or pt.is_run_end_encoded(data_type)
        or pt.is_interval(data_type)
        # Its elements may overlap, so that a small file stands for any number of them.
        or pt.is_list_view(data_type)
        or pt.is_large_list_view(data_type)
    ):
        return "data files cannot hold this type; cast the column first"
    for number in range(data_type.num_fields):
        child = data_type.field(number)
        if isinstance(child.type, pa.BaseExtensionType) or pt.is_dictionary(child.type):
            return f"the nested type {child.type} is not read; cast the column first"
        problem = field_refusal(child)
        if problem is not None:
            return problem
    return None


def field_refusal(field: pa.Field) -> str | None:
    """As `refusal`, also for an extension type that this process does not know."""
    name = next(extension_names(field), None)
    if name is not None and name not in READ_TYPES:
        return (
            f"the extension type {name!r} is not read, because such a type may run code when it "
            "is; write the column with its storage type"
        )
    return refusal(field.type)


def plain_type(found: pa.DataType) -> pa.DataType:
    """The type that values of a column get in our tables, before files are compared."""
    if isinstance(found, pa.BaseExtensionType):
        return pa.string()
    if pt.is_dictionary(found):
        return plain_type(found.value_type)
    if pt.is_string(found) or pt.is_large_string(found) or pt.is_string_view(found):
        return pa.string()
    if pt.is_binary(found) or pt.is_large_binary(found) or pt.is_binary_view(found):
        return pa.binary()
    if pt.is_list(found) or pt.is_large_list(found):
        # Parquet and Arrow name the field of a list's items differently.
        return pa.list_(plain_type(found.value_type))
    return found


def widest(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both plain types, None if they do not go together."""
    if one.equals(other) or pt.is_null(other):
        return one
    if pt.is_null(one):
        return other
    if _is_number(one) and _is_number(other):
        if _is_integer(one) and _is_integer(other):
            return _wider_integer(one, other)
        if _is_integer(one) or _is_integer(other):
            return pa.float64()
        return max(one, other, key=lambda number: number.bit_width)
    return None


def agree(
    names: Sequence[str], files: Iterable[tuple[str, Mapping[str, pa.DataType]]]
) -> dict[str, pa.DataType]:
    """The types on which the files agree.

    Args:
        names: the columns.
        files: URL and plain types of the columns of each file; a column may be missing.

    Returns: a type for each name; one that is null or missing everywhere becomes string.

    Raises:
        SourceError: names both files and both types.
    """
    agreed: dict[str, pa.DataType] = {name: pa.null() for name in names}
    decided_by: dict[str, tuple[str, pa.DataType]] = {}
    for path, types in files:
        for name in names:
            found = types.get(name)
            if found is None:
                continue
            both = widest(agreed[name], found)
            if both is None:
                first_path, first_type = decided_by[name]
                raise SourceError(
                    f"column {name!r} has type {bounded(str(first_type))} in {first_path} and type "
                    f"{bounded(str(found))} in {path}; a column has one type: cast "
                    "it in one of the files, or leave it out of source.carry_columns"
                )
            if not both.equals(agreed[name]):
                decided_by[name] = (path, found)
                agreed[name] = both
    return {name: pa.string() if pt.is_null(found) else found for name, found in agreed.items()}


def _is_integer(data_type: pa.DataType) -> bool:
    return bool(pt.is_integer(data_type))


def _is_number(data_type: pa.DataType) -> bool:
    return _is_integer(data_type) or bool(pt.is_floating(data_type))


def _is_stringlike(found: pa.DataType) -> bool:
    plain = plain_type(found)
    return bool(pt.is_string(plain) or pt.is_binary(plain))


def _can_partition(value_type: pa.DataType) -> bool:
    return bool(
        _is_integer(value_type)
        or pt.is_string(value_type)
        or pt.is_boolean(value_type)
        or pt.is_date32(value_type)
        or pt.is_null(value_type)
    )


def _wider_integer(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if pt.is_signed_integer(one) == pt.is_signed_integer(other):
        return max(one, other, key=lambda number: number.bit_width)
    unsigned = one if pt.is_unsigned_integer(one) else other
    signed = other if unsigned is one else one
    for candidate in (pa.int16(), pa.int32(), pa.int64()):
        if candidate.bit_width > unsigned.bit_width and candidate.bit_width >= signed.bit_width:
            return candidate
    return None
