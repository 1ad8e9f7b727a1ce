"""String and variant tensors, as a data file of the V2 format holds them.

Strings: the length of each as a varint, a masked checksum of the lengths, then all bytes.
Variants: for each its length as a varint, its bytes, and a masked checksum of all before it. Both
checksums run over the lengths as numbers of 4 or 8 bytes, not over the varints.

References:
    tensorflow/core/util/tensor_bundle/tensor_bundle.cc: WriteStringTensor, ReadStringTensor,
    WriteVariantTensor, ReadVariantTensor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from converter.formats.stream import crc32c
from converter.formats.table import get_varint, mask, put_varint, unmask
from converter.variable import Array

_UINT32_MAX = 0xFFFFFFFF


def encode_strings(values: Array) -> tuple[bytes, int]:
    """Return the bytes of an object array of `bytes`, and their running checksum (not masked).

    Raises:
        ValueError: an element is no `bytes`.
    """
    strings: list[bytes] = values.ravel().tolist()
    if not all(isinstance(string, bytes) for string in strings):
        raise ValueError("its elements are not all bytes")
    lengths = [len(string) for string in strings]
    crc = _crc_of_lengths(lengths, "<")
    checksum = mask(crc).to_bytes(4, "little")
    contents = b"".join(strings)
    data = b"".join([*map(put_varint, lengths), checksum, contents])
    return data, crc32c(contents, crc32c(checksum, crc))


def decode_strings(
    data: bytes, shape: Sequence[int], *, big_endian: bool, verify: bool
) -> tuple[Array, int]:
    """Return an object array of `bytes`, and the running checksum (not masked).

    Args:
        data: all bytes of the tensor.
        shape: of the tensor.
        big_endian: the byte order of the machine that wrote them.
        verify: compare the checksum of the lengths.

    Raises:
        ValueError: the data do not hold that many strings, or their checksum differs.
    """
    count = math.prod(shape)
    if not data and not count:
        return np.empty(shape, object), 0
    # Every string costs a byte at least: nothing is allocated for those that cannot be there.
    if count + 4 > len(data):
        raise ValueError(f"{len(data)} bytes cannot hold {count} strings")
    lengths, start = _lengths(data, count)
    start += 4
    if sum(lengths) != len(data) - start:
        raise ValueError(f"{len(data) - start} bytes are left for strings of {sum(lengths)}")
    crc, checksum = 0, data[start - 4 : start]
    if verify:
        crc = _crc_of_lengths(lengths, ">" if big_endian else "<")
        recorded = unmask(int.from_bytes(checksum, "big" if big_endian else "little"))
        if crc != recorded:
            raise ValueError(f"the lengths have checksum {crc:08x}, recorded is {recorded:08x}")
        crc = crc32c(np.frombuffer(data, np.uint8)[start:], crc32c(checksum, crc))
    values = np.empty(count, object)
    ends = itertools.accumulate(lengths, initial=start)
    values[:] = [data[low:high] for low, high in itertools.pairwise(ends)]
    return values.reshape(shape), crc


def crc_of_variants(data: bytes, count: int) -> int:
    """Return the running checksum (not masked) of a tensor of `count` variants.

    Raises:
        ValueError: the data do not hold that many variants, or a checksum between them differs.
    """
    crc = position = 0
    view = np.frombuffer(data, np.uint8)
    for index in range(count):
        try:
            size, position = get_varint(data, position)
        except IndexError:
            size = len(data)
        end = position + size
        if end + 4 > len(data):
            raise ValueError(f"{len(data)} bytes end within variant {index} of {count}")
        crc = crc32c(view[position:end], crc32c(size.to_bytes(8, "little"), crc))
        recorded = unmask(int.from_bytes(data[end : end + 4], "little"))
        if crc != recorded:
            raise ValueError(f"variant {index} has checksum {crc:08x}, recorded is {recorded:08x}")
        crc = crc32c(data[end : end + 4], crc)
        position = end + 4
    if position != len(data):
        raise ValueError(f"{len(data) - position} bytes follow the last of {count} variants")
    return crc


def _lengths(data: bytes, count: int) -> tuple[list[int], int]:
    lengths, position = [], 0
    try:
        for _ in range(count):
            length = data[position]
            position += 1
            if length > 127:
                length, position = get_varint(data, position - 1)
            lengths.append(length)
    except IndexError:
        raise ValueError(f"{len(data)} bytes end within the lengths of {count} strings") from None
    return lengths, position


def _crc_of_lengths(lengths: list[int], order: str) -> int:
    if max(lengths, default=0) <= _UINT32_MAX:
        return crc32c(np.array(lengths, f"{order}u4").tobytes())
    crc = 0
    for length in lengths:
        width = 4 if length <= _UINT32_MAX else 8
        crc = crc32c(length.to_bytes(width, "big" if order == ">" else "little"), crc)
    return crc
