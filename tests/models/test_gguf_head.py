from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from namm.models import load_model
from namm.models.gguf_head import DamagedGGUFError, check_head


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_array("some.texts", ["one", "two"])
    writer.add_float32("some.float", 0.5)
    writer.add_tensor("first", np.zeros((3, 5), dtype=np.float32))
    writer.add_tensor("second", np.zeros((7,), dtype=np.float16))
    writer.add_tensor("packed", np.zeros((2, 18), dtype=np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_whole_file_passes_and_a_byte_less_does_not(file: Path) -> None:
    check_head(file)
    content = file.read_bytes()
    # the last tensor has 36 bytes, and behind it is padding
    end = len(content) - (-36 % 64)
    file.write_bytes(content[:end])
    check_head(file)
    file.write_bytes(content[: end - 1])
    with pytest.raises(DamagedGGUFError, match=f"its tensors lead to byte {end:,} of {end - 1:,}"):
        check_head(file)


@pytest.mark.fault("C18", siblings="counts that lead out of the file made the reader loop without an end")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"GGU", "its head leads to byte 4 of 3"),
        (b"GGML" + bytes(20), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "its version is 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0), "its head leads to byte"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62), "its head leads to byte"),
        # a key of 2^63 bytes; an array of 2^60 numbers, of 2^60 texts; arrays in arrays without an end
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "its head leads to byte"),
        (b"GGUF" + struct.pack("<IQQQIIQ", 3, 0, 1, 0, 9, 4, 2**60), "its head leads to byte"),
        (b"GGUF" + struct.pack("<IQQQIIQ", 3, 0, 1, 0, 9, 8, 2**60), "its head leads to byte"),
        (b"GGUF" + struct.pack("<IQQQI", 3, 0, 1, 0, 9) + struct.pack("<IQ", 9, 1) * 99, "a value of type 9"),
        (b"GGUF" + struct.pack("<IQQQI", 3, 0, 1, 0, 13), "a value of type 13"),
        (b"GGUF" + struct.pack("<IQQQI", 3, 1, 0, 0, 5), "a tensor of 5 dimensions"),
        (b"GGUF" + struct.pack("<IQQQIQIQ", 3, 1, 0, 0, 1, 1, 999, 0), "a tensor of type 999"),
        (b"GGUF" + struct.pack("<IQQQIQIQ", 3, 1, 0, 0, 1, 2**62, 0, 0), "its tensors lead to byte"),
        (b"GGUF" + struct.pack("<IQQQ17sII", 3, 0, 1, 17, b"general.alignment", 4, 0), "its alignment is 0"),
    ],
)
def test_what_leads_out_of_the_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(DamagedGGUFError, match=message):
        check_head(path)
    if content.startswith(b"GGUF"):
        with pytest.raises(ValueError, match=rf"is damaged.*{message}"):
            load_model(path)
