"""The lm-evaluation-harness under any policy: its model ``namm``.

    python -m namm.evaluation.harness --model namm --tasks longbench \\
        --model_args pretrained=smollm2-135m,policy=namm,kept=0.25

`lm_eval` finds only the models that have been imported, and has no entry points for others, so this module registers
its model and hands the command line to lm_eval's own main program: all of its options apply, and its other models are
there too. In Python importing this module is enough: ``lm_eval.simple_evaluate(model="namm", ...)``.

Contexts go in under the policy, which forgets every `update_interval` tokens; continuations are scored in the same
call, which is the same as after it, since what is decided at the end of a block changes nothing before it.

Arguments beside those of lm_eval's ``hf`` model: ``pretrained`` (also an embedded name or a GGUF file), ``policy``
(``namm``, ``full`` or a hand-designed rule), ``memory``, and ``kept`` (for ``namm``) or ``budget`` (for the others).
"""

from __future__ import annotations

from typing import Any

import torch

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError:
    raise ImportError("the harness needs lm-eval: pip install 'namm[harness]'") from None

from namm.cache import MemoryCache
from namm.evaluation.policies import check_policies, make_policy
from namm.memory import NAMM
from namm.models import load_model
from namm.policies import Policy


@register_model("namm")
class HarnessModel(HFLM):
    """lm_eval's ``hf`` model with a `MemoryCache` in every call; see the module."""

    def __init__(
        self,
        pretrained: str = "smollm2-135m",
        memory: str = "smollm2-135m",
        policy: str = "namm",
        kept: float | None = None,
        budget: float | None = None,
        dtype: str = "auto",
        device: str | None = None,
        **options: Any,
    ) -> None:
        self._rule = harness_policy(policy, memory, kept, budget)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, tokenizer = load_model(pretrained, dtype=dtype, device=device)
        super().__init__(pretrained=model, tokenizer=tokenizer, **options)

    def _model_call(self, inps: torch.Tensor, attn_mask: Any = None, labels: Any = None) -> torch.Tensor:
        # padding is on the right here, where nothing that counts comes after it
        with torch.no_grad():
            return self.model(inps, past_key_values=MemoryCache(self.model, self._rule)).logits

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: Any, **options: Any) -> torch.Tensor:
        cache = MemoryCache(self.model, self._rule)
        return super()._model_generate(context, max_length, stop, past_key_values=cache, **options)


def harness_policy(name: str, memory: str, kept: float | None, budget: float | None) -> Policy:
    """The policy that lm_eval's arguments name.

    Raises:
        ValueError: for an unknown policy, or a fraction that it does not take.
    """
    check_policies([name])
    if name == "namm" and budget is not None:
        raise ValueError("policy=namm takes kept=FRACTION, to aim at; budget is for the hand-designed rules")
    if name != "namm" and kept is not None:
        raise ValueError(f"policy={name} takes budget=FRACTION; kept is for policy=namm")
    if name != "namm":
        kept = 0.25 if budget is None else budget
    return make_policy(name, kept, NAMM.from_pretrained(memory))


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
