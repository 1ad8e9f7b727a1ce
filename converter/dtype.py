"""The dtypes of TensorFlow checkpoints, and what numpy and safetensors call them.

numpy lacks bfloat16, the float8 kinds, the sub-byte integers and TensorFlow's strings; ml_dtypes
brings all but the strings. Never branch on `numpy.dtype.kind` of those: bfloat16 says `V`,
float8_e5m2 says `f`.

References:
    tensorflow/core/framework/types.proto; the safetensors format description.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    Attributes:
        name: TensorFlow's name, `float32`, `bfloat16`, `qint8` ...
        tensorflow: the number in TensorFlow's DataType enum.
        numpy: how the values stand in memory, little-endian; `object` (of bytes) for strings;
            None for variants, which are carried as opaque bytes.
        safetensors: the code in a safetensors header, or None where the format has none.
    """

    name: str
    tensorflow: int
    numpy: np.dtype[np.generic] | None
    safetensors: str | None

    @property
    def itemsize(self) -> int:
        """Bytes of one element; 0 for strings and variants, whose elements differ in size."""
        return 0 if self.numpy is None or self.numpy.hasobject else self.numpy.itemsize

    @property
    def is_float(self) -> bool:
        """Whether the elements are real floating-point numbers."""
        return "float" in self.name

    @property
    def is_number(self) -> bool:
        """Whether arithmetic on the elements makes sense: no strings, variants, or booleans."""
        return self.itemsize > 0 and self.name != "bool"

    @property
    def wide(self) -> np.dtype[np.generic]:
        """The type that holds every number of this one exactly and in which numpy computes.

        int64, uint64, float64 or complex128.
        """
        kind = next((k for k in ("complex", "float", "uint64") if k in self.name), "int64")
        return np.dtype({"complex": "c16", "float": "f8"}.get(kind, kind))

    def __str__(self) -> str:
        return self.name


_DTYPES = [
    DType("float32", 1, np.dtype("<f4"), "F32"),
    DType("float64", 2, np.dtype("<f8"), "F64"),
    DType("int32", 3, np.dtype("<i4"), "I32"),
    DType("uint8", 4, np.dtype("u1"), "U8"),
    DType("int16", 5, np.dtype("<i2"), "I16"),
    DType("int8", 6, np.dtype("i1"), "I8"),
    DType("string", 7, np.dtype(object), None),
    DType("complex64", 8, np.dtype("<c8"), "C64"),
    DType("int64", 9, np.dtype("<i8"), "I64"),
    DType("bool", 10, np.dtype("?"), "BOOL"),
    DType("qint8", 11, np.dtype("i1"), "I8"),
    DType("quint8", 12, np.dtype("u1"), "U8"),
    DType("qint32", 13, np.dtype("<i4"), "I32"),
    DType("bfloat16", 14, np.dtype(ml_dtypes.bfloat16), "BF16"),
    DType("qint16", 15, np.dtype("<i2"), "I16"),
    DType("quint16", 16, np.dtype("<u2"), "U16"),
    DType("uint16", 17, np.dtype("<u2"), "U16"),
    DType("complex128", 18, np.dtype("<c16"), None),
    DType("float16", 19, np.dtype("<f2"), "F16"),
    DType("variant", 21, None, None),
    DType("uint32", 22, np.dtype("<u4"), "U32"),
    DType("uint64", 23, np.dtype("<u8"), "U64"),
    DType("float8_e5m2", 24, np.dtype(ml_dtypes.float8_e5m2), "F8_E5M2"),
    DType("float8_e4m3fn", 25, np.dtype(ml_dtypes.float8_e4m3fn), "F8_E4M3"),
    DType("float8_e4m3fnuz", 26, np.dtype(ml_dtypes.float8_e4m3fnuz), "F8_E4M3FNUZ"),
    DType("float8_e4m3b11fnuz", 27, np.dtype(ml_dtypes.float8_e4m3b11fnuz), None),
    DType("float8_e5m2fnuz", 28, np.dtype(ml_dtypes.float8_e5m2fnuz), "F8_E5M2FNUZ"),
    DType("int4", 29, np.dtype(ml_dtypes.int4), None),
    DType("uint4", 30, np.dtype(ml_dtypes.uint4), None),
    DType("int2", 31, np.dtype(ml_dtypes.int2), None),
    DType("uint2", 32, np.dtype(ml_dtypes.uint2), None),
    DType("float4_e2m1fn", 33, np.dtype(ml_dtypes.float4_e2m1fn), None),
]

BY_NAME = {dtype.name: dtype for dtype in _DTYPES}
BY_TENSORFLOW = {dtype.tensorflow: dtype for dtype in _DTYPES}
# Quantised types share the numpy type and the safetensors code of the plain integer, which wins.
BY_SAFETENSORS = {d.safetensors: d for d in reversed(_DTYPES) if d.safetensors and d.name[0] != "q"}
BY_NUMPY = {d.numpy: d for d in reversed(_DTYPES) if d.numpy is not None and d.name[0] != "q"}

BOOL = BY_NAME["bool"]
INT32 = BY_NAME["int32"]
STRING = BY_NAME["string"]
VARIANT = BY_NAME["variant"]
