"""Thrift's compact protocol, as far as Parquet's headers and footers use it. Knows bytes only.

A struct is a dict from field number to (type, value), so that fields of which this program knows
nothing survive being read and written. Source: the Thrift compact protocol specification.
"""

from __future__ import annotations

import struct
from typing import Any, TypeAlias

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, STRUCT = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    12,
)

# Values: bool, int, float, bytes, (element type, elements) for lists, Struct.
Struct: TypeAlias = dict[int, tuple[int, Any]]


def decode(data: bytes | memoryview) -> Struct:
    """Read one struct from the start of `data`.

    Raises:
        ValueError: a type that Parquet does not use.
        IndexError: the data end too soon.
    """
    return decode_at(data, 0)[0]


def decode_at(data: bytes | memoryview, start: int) -> tuple[Struct, int]:
    """Read one struct from byte `start` on; returns it and the byte after. Raises as `decode`."""
    decoder = _Decoder(data, start)
    return decoder.struct(), decoder.at


def encode(values: Struct) -> bytes:
    """Write one struct; fields in the order of their numbers."""
    out = bytearray()
    last = 0
    for number, (kind, value) in sorted(values.items()):
        if kind in (TRUE, FALSE):
            kind = TRUE if value else FALSE
        if 0 < number - last < 16:
            out.append((number - last) << 4 | kind)
        else:
            out.append(kind)
            out += varint(_zigzag(number))
        if kind not in (TRUE, FALSE):
            out += _encode_value(kind, value)
        last = number
    out.append(0)
    return bytes(out)


def varint(number: int) -> bytes:
    """A number from 0 on, 7 bits a byte, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _encode_value(kind: int, value: Any) -> bytes:
    if kind == BYTE:
        return bytes([value])
    if kind in (I16, I32, I64):
        return varint(_zigzag(value))
    if kind == DOUBLE:
        return struct.pack("<d", value)
    if kind == BINARY:
        return varint(len(value)) + bytes(value)
    if kind in (LIST, SET):
        return _encode_list(*value)
    if kind == STRUCT:
        return encode(value)
    raise ValueError(f"Thrift type {kind} is not used in Parquet")


def _encode_list(kind: int, elements: list[Any]) -> bytes:
    short = len(elements) < 15
    head = bytes([(len(elements) if short else 15) << 4 | kind])
    if not short:
        head += varint(len(elements))
    if kind in (TRUE, FALSE):
        return head + bytes(TRUE if element else FALSE for element in elements)
    return head + b"".join(_encode_value(kind, element) for element in elements)


def _zigzag(number: int) -> int:
    return (number << 1) ^ (number >> 63)


class _Decoder:
    def __init__(self, data: bytes | memoryview, start: int) -> None:
        self._data = data
        self.at = start

    def struct(self) -> Struct:
        values: Struct = {}
        number = 0
        while head := self._byte():
            kind = head & 0x0F
            number = number + (head >> 4) if head >> 4 else self._integer()
            value = kind == TRUE if kind in (TRUE, FALSE) else self._value(kind)
            values[number] = (kind, value)
        return values

    def _value(self, kind: int) -> Any:
        if kind in (TRUE, FALSE):  # an element of a list; in a struct the type is the value
            return self._byte() == TRUE
        if kind == BYTE:
            return self._byte()
        if kind in (I16, I32, I64):
            return self._integer()
        if kind == DOUBLE:
            return struct.unpack("<d", self._bytes(8))[0]
        if kind == BINARY:
            return self._bytes(self._varint())
        if kind in (LIST, SET):
            head = self._byte()
            length = head >> 4 if head >> 4 < 15 else self._varint()
            return head & 0x0F, [self._value(head & 0x0F) for _ in range(length)]
        if kind == STRUCT:
            return self.struct()
        raise ValueError(f"Thrift type {kind} is not used in Parquet")

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _bytes(self, length: int) -> bytes:
        self.at += length
        return bytes(self._data[self.at - length : self.at])

    def _varint(self) -> int:
        number = shift = 0
        while True:
            byte = self._byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def _integer(self) -> int:
        number = self._varint()
        return number >> 1 ^ -(number & 1)
