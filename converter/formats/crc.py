"""The CRC-32C of a part of a range, from that of the whole.

A checksum is a polynomial over GF(2), modulo Castagnoli's; appending n bytes multiplies it by
x**(8*n). So what the bytes around a part contribute can be taken away again.

References:
    Mark Adler's `crc32_combine` in zlib. Bits are reflected: x**0 is the highest.
"""

from __future__ import annotations

from converter.formats.stream import crc32c

_POLYNOMIAL = 0x82F63B78
_ONE, _X = 1 << 31, 1 << 30
# The polynomial is x + 1 times a primitive one of degree 31, so x has this order.
_ORDER = (1 << 31) - 1


def crc32c_between(whole: int, before: bytes, size: int, after: bytes) -> int:
    """Return the CRC-32C of the `size` bytes between `before` and `after`.

    Args:
        whole: the CRC-32C of all three in a row.
        before: the bytes before.
        size: number of the bytes in between, which are not read.
        after: the bytes behind.
    """
    shifted = whole ^ crc32c(after) ^ _shift(crc32c(before), size + len(after))
    return _shift(shifted, -len(after))


def _shift(crc: int, size: int) -> int:
    exponent = 8 * size % _ORDER
    square = _X
    while exponent:
        if exponent & 1:
            crc = _times(crc, square)
        square = _times(square, square)
        exponent >>= 1
    return crc


def _times(a: int, b: int) -> int:
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product
