"""Compiles every kernel as it is launched by a layer of the size of Llama-3-8B, for an H100, where there need be none.

Run as a script, without Triton's interpreter, with variants: "bfloat16", "float32 softcap sinks 4" and the like, where
a number says in how many bits tokens are packed. Prints of every variant and kernel its registers, bytes of spills and
whether it multiplies with wgmma, as JSON; of a kernel that is the same in several variants once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

TARGET = ("cuda", 90, 32)


def compile_kernels(variants: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    import torch
    import triton
    from launches import without_running
    from layers import Layers, random_tokens
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from namm import NAMM
    from namm.cache.arithmetic import AttentionForm
    from namm.memory.config import UNIVERSAL
    from namm.policies import NAMMPolicy, SnapKV

    kinds = {
        torch.float32: "*fp32",
        torch.bfloat16: "*bf16",
        torch.float16: "*fp16",
        torch.float64: "*fp64",
        torch.int32: "*i32",
        torch.int8: "*i8",
        torch.uint8: "*u8",
    }
    found: dict[str, dict[str, dict[str, Any]]] = {}
    known: set[str] = set()

    def compile_only(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        name = kernel.__name__
        key = f"{name} split" if constants.get("CHUNK") else name
        if key in found[variant]:
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
        found[variant][key] = {}
        if (same := repr((kernel.__name__, signature, constexprs, aligned, options))) in known:
            return
        known.add(same)
        source = ASTSource(kernel, signature, constexprs, aligned)
        made = triton.compile(source, target=GPUTarget(*TARGET), options=options)
        found[variant][key] = resources(made.asm["cubin"]) | {"wgmma": "wgmma.mma_async" in made.asm["ptx"]}

    generator = torch.Generator().manual_seed(0)
    for variant in variants:
        found[variant] = {}
        dtype = getattr(torch, variant.split()[0])
        bits = next((int(word) for word in variant.split() if word.isdigit()), None)
        sinks = torch.zeros(32, dtype=dtype) if "sinks" in variant else None
        form = AttentionForm(128**-0.5, 50.0 if "softcap" in variant else None, sinks)
        for policy in (NAMMPolicy(NAMM(UNIVERSAL), kept=0.25), SnapKV(0.5)):
            layers = Layers(policy, "ragged", form, count=1, bits=bits)
            empty = mock.patch.object(torch, "empty", torch.zeros)  # nothing that is read was written
            with without_running(compile_only), empty:
                for tokens in (256, 1, 31):
                    new = random_tokens(1, 8, 4, tokens, 128, 1, generator)
                    layers.feed([[t.to(dtype) for t in own] for own in new])
                held: Any = layers.layers[0].engine
                held.stale.add(0)  # as if it had forgotten what the last queries saw
                layers.settle(None)
    return {variant: {name: own for name, own in kernels.items() if own} for variant, kernels in found.items()}


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
    sys.path[:0] = [str(here), str(here.parent / "benchmarks")]
    print(json.dumps(compile_kernels(sys.argv[1:])))
