"""What a pickle may stand for: which names are harmless, and the records that are made of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from audiation.checkpoints.tensors import TensorInfo

STORAGE_DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "ByteStorage": torch.uint8, "CharStorage": torch.int8,
    "ShortStorage": torch.int16, "IntStorage": torch.int32, "LongStorage": torch.int64, "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}  # fmt: skip
RARE_STORAGES = {  # for their size only
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8, "QInt32Storage": torch.int32, "QUInt4x2Storage": torch.uint8,
    "QUInt2x4Storage": torch.uint8,
}  # fmt: skip
DTYPE_NAMES = frozenset(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))
# Configuration, counters and metrics beside the tensors: placeholders, whatever is done with them.
INERT_MODULES = (
    "omegaconf", "fairseq", "pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "hparams",
    "jukebox.hparams", "pathlib", "datetime", "numpy.random._pickle", "numpy.dtypes",
)  # fmt: skip
INERT_NAMES = {
    "argparse.Namespace", "typing.Any", "collections.Counter", "collections.deque", "torch.Size", "torch.device",
    "torch.serialization._get_layout", "copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__")
      for name in ("set", "frozenset", "list", "tuple", "dict", "str", "int", "float", "bool", "bytes", "bytearray",
                   "complex", "object", "slice", "range", "unicode", "long")),
    *(f"numpy.{name}" for name in ("dtype", "ndarray", "bool", "bool_", "str_", "float16", "float32", "float64",
                                   "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
}  # fmt: skip
DICTIONARIES = {"collections.OrderedDict", "collections.defaultdict"}
BYTES_FROM_TEXT = "_codecs.encode"
TENSOR_MAKERS = {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"}


class UnsafePickleError(ValueError):
    """A pickle that wants more than data. what: the name or opcode."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


@dataclass(frozen=True, eq=False)
class Inert:
    """Placeholder of an object that is nothing to us. name: of its class or function."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Where numbers lie: `num_elements` of `dtype` under `key`, the first of them `start` elements into it.

    num_stored: elements under that key, of which an old file may use a part.
    """

    key: str
    dtype: torch.dtype
    num_elements: int
    start: int = 0
    num_stored: int = 0


@dataclass(frozen=True)
class StoredTensor:
    """A strided tensor in a storage; offset and stride in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def info(self) -> TensorInfo:
        return TensorInfo(self.storage.dtype, self.shape)

    @property
    def span(self) -> int:
        """Elements from its first to its last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))

    @property
    def is_contiguous(self) -> bool:
        expected = 1
        for length, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if length != 1 and step != expected:
                return False
            expected *= length
        return True


@dataclass(frozen=True)
class OtherTensor:
    """A tensor that is sparse, quantised, complex, or without data. maker: what would make it."""

    maker: str


def is_allowed(module: str, name: str, text: str) -> bool:
    """Whether a name may occur; `text` is both parts with a dot."""
    if text in INERT_NAMES or text in DICTIONARIES or text == BYTES_FROM_TEXT:
        return True
    if any(module == known or module.startswith(known + ".") for known in INERT_MODULES):
        return True
    if module in ("torch", "torch.storage") and (name in STORAGE_DTYPES or name in RARE_STORAGES):
        return True
    if module == "torch._utils":
        return name.startswith("_rebuild_")
    return (module == "torch" and name in DTYPE_NAMES) or text in (
        "torch._tensor._rebuild_from_type_v2",
        "torch.nn.parameter.Parameter",
        "torch.Tensor",
    )
