"""Compiles every kernel as it is launched by a layer of the size of Llama-3-8B, for an H100, where there need be none.

Run as a script, without Triton's interpreter: prints of every kernel its registers, bytes of spills and whether it
multiplies with wgmma, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TARGET = ("cuda", 90, 32)


def compile_kernels(dtype_name: str) -> dict[str, dict[str, Any]]:
    import torch
    import triton
    from engines import Layers, random_tokens
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from namm import NAMM
    from namm.cache.arithmetic import AttentionForm
    from namm.cache.ragged import engine, launching
    from namm.memory.config import UNIVERSAL
    from namm.policies import NAMMPolicy, SnapKV

    kinds = {
        torch.float32: "*fp32",
        torch.bfloat16: "*bf16",
        torch.float16: "*fp16",
        torch.float64: "*fp64",
        torch.int32: "*i32",
        torch.int8: "*i8",
    }
    found: dict[str, dict[str, Any]] = {}

    def compile_only(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        name = kernel.__name__
        if name == "order":  # everything stays
            table, answer = arguments[2], arguments[8]
            answer[0], answer[1] = table[2], 0
        key = f"{name} split" if constants.get("CHUNK") else name
        if key in found:
            return
        signature, constexprs, aligned = {}, {}, {}
        options = {option: constants[option] for option in ("num_warps", "num_stages") if option in constants}
        for index, parameter in enumerate(kernel.arg_names):
            value = arguments[index] if index < len(arguments) else constants[parameter]
            whole = not isinstance(value, torch.Tensor | float)
            if index >= len(arguments) or (whole and value == 1):
                signature[parameter], constexprs[(index,)] = "constexpr", value
                continue
            signature[parameter] = kinds[value.dtype] if isinstance(value, torch.Tensor) else "i32" if whole else "fp32"
            number = value.data_ptr() if isinstance(value, torch.Tensor) else value
            if not isinstance(number, float) and number % 16 == 0:
                aligned[(index,)] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constexprs, aligned)
        made = triton.compile(source, target=GPUTarget(*TARGET), options=options)
        found[key] = resources(made.asm["cubin"]) | {"wgmma": "wgmma.mma_async" in made.asm["ptx"]}

    launching.run = compile_only
    engine.check_device = lambda device: None
    dtype = getattr(torch, dtype_name)
    generator = torch.Generator().manual_seed(0)
    for policy in (NAMMPolicy(NAMM(UNIVERSAL), kept=0.25), SnapKV(0.5)):
        layers = Layers(policy, "ragged", AttentionForm(128**-0.5), count=1)
        for tokens in (256, 1, 31):
            layers.feed([[t.to(dtype) for t in own] for own in random_tokens(1, 8, 4, tokens, 128, 1, generator)])
        held: Any = layers.layers[0].engine
        held.stale.add(0)  # as if it had forgotten what the last queries saw
        layers.settle(None)
    return found


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread and bytes that it spills."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    words = dict(word.split(":") for word in told.stdout.split() if word.count(":") == 1 and word[-1].isdigit())
    return {"registers": int(words["REG"]), "spilled": int(words["STACK"]) + int(words["LOCAL"])}


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here / "cache")]
    print(json.dumps(compile_kernels(sys.argv[1])))
