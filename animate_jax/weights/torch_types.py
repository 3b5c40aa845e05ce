"""The types that tensors have in PyTorch's files, by PyTorch's names."""

import ml_dtypes
import numpy as np

STORAGE_DTYPES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
    "torch.ComplexFloatStorage": np.dtype(np.complex64),
    "torch.ComplexDoubleStorage": np.dtype(np.complex128),
}

# Storages without a type: the tensor that uses one says its dtype.
UNTYPED_STORAGES = ("torch.storage.UntypedStorage", "torch.UntypedStorage")

TENSOR_DTYPES = {
    **{
        f"torch.{name}": np.dtype(name)
        for name in "float64 float32 float16 complex64 complex128 int64 int32 int16 int8 "
        "uint64 uint32 uint16 uint8 bool".split()
    },
    **{
        f"torch.{name}": np.dtype(getattr(ml_dtypes, name))
        for name in "bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz".split()
    },
}
