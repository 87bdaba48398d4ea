"""One of several processes that share a model: python -m torch.distributed.run ... tensor_parallel.py MODEL OUT."""

import sys

import torch
import torch.distributed
from spread import run_policies
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

folder, output = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(
    folder, distributed_config=DistributedConfig(tp_plan="auto"), dtype=torch.float32
).eval()
torch.save(run_policies(model), f"{output}/{torch.distributed.get_rank()}.pt")
torch.distributed.destroy_process_group()
