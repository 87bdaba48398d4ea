"""The head of a GGUF file, walked before anything believes its counts.

Readers loop as often as a damaged count tells them to. Here every count is held against the bytes that are there.

    head:    "GGUF", version u32, tensors u64, values u64, values, tensors' infos, padding, tensors
    value:   key, type u32, value;  key: length u64, bytes;  array: type u32, length u64, values
    tensor:  name, dimensions u32, sizes u64 each, type u32, offset u64 from where the padding ends
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of numbers, by their types
U32, STRING, ARRAY = 4, 8, 9
MOST_DIMENSIONS = 4
DEEPEST = 4  # arrays in arrays


class DamagedGGUFError(ValueError):
    """What should be a GGUF file isn't one from end to end; the message says where."""


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def check_head(path: Path) -> None:
    """Walk the head and see that every tensor lies in the file.

    Raises:
        DamagedGGUFError: if a count, a type or an offset leads out of the file.
    """
    if path.stat().st_size == 0:
        raise DamagedGGUFError("it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _Walk(content).whole()


class _Walk:
    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.size, self.at = content, len(content), 0
        self.alignment = 32

    def skip(self, count: int) -> int:
        """Go on by so many bytes; where they began."""
        start, end = self.at, self.at + count
        if end > self.size:
            raise DamagedGGUFError(f"its head leads to byte {end:,} of {self.size:,}")
        self.at = end
        return start

    def u32(self) -> int:
        return int(struct.unpack_from("<I", self.content, self.skip(4))[0])

    def u64(self) -> int:
        return int(struct.unpack_from("<Q", self.content, self.skip(8))[0])

    def whole(self) -> None:
        start = self.skip(len(MAGIC))
        if self.content[start : self.at] != MAGIC:
            raise DamagedGGUFError("it does not begin with GGUF")
        if (version := self.u32()) not in VERSIONS:
            raise DamagedGGUFError(
                f"its version is {version}, and versions {VERSIONS} are read, in little-endian order"
            )
        tensors, values = self.u64(), self.u64()
        for _ in range(values):
            length = self.u64()
            start = self.skip(length)
            key, kind, value = self.content[start : self.at], self.u32(), self.at
            self.value(kind, 0)
            if key == b"general.alignment" and kind == U32:
                self.alignment = int(struct.unpack_from("<I", self.content, value)[0])
        ends = [self.tensor() for _ in range(tensors)]
        if self.alignment == 0:
            raise DamagedGGUFError("its alignment is 0")
        data = -(-self.at // self.alignment) * self.alignment
        if ends and data + max(ends) > self.size:
            raise DamagedGGUFError(f"its tensors lead to byte {data + max(ends):,} of {self.size:,}")

    def value(self, kind: int, depth: int) -> None:
        if kind in WIDTHS:
            self.skip(WIDTHS[kind])
        elif kind == STRING:
            self.skip(self.u64())
        elif kind == ARRAY and depth < DEEPEST:
            kind, count = self.u32(), self.u64()
            if kind in WIDTHS:
                self.skip(WIDTHS[kind] * count)
            else:
                for _ in range(count):  # each takes bytes, so the file's end ends it
                    self.value(kind, depth + 1)
        else:
            raise DamagedGGUFError(f"it has a value of type {kind}, which is none")

    def tensor(self) -> int:
        """Where its bytes end, from the beginning of the data."""
        self.skip(self.u64())
        dimensions = self.u32()
        if dimensions > MOST_DIMENSIONS:
            raise DamagedGGUFError(f"it has a tensor of {dimensions} dimensions")
        numbers = math.prod(self.u64() for _ in range(dimensions))
        kind, offset = self.u32(), self.u64()
        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except ValueError:
            raise DamagedGGUFError(f"it has a tensor of type {kind}, which is not known") from None
        return offset + -(-numbers // block) * size
