"""The lm-evaluation-harness under any policy: its model ``namm``.

    python -m namm.evaluation.harness --model namm --tasks longbench \\
        --model_args pretrained=smollm2-135m,policy=namm,kept=0.25

`lm_eval` finds only the models that have been imported, and has no entry points for others, so this module registers
its model and hands the command line to lm_eval's own main program: all of its options apply, and its other models are
there too. In Python importing this module is enough: ``lm_eval.simple_evaluate(model="namm", ...)``.

Contexts go in under the policy, which forgets every `update_interval` tokens; continuations are scored in the same
call, which is the same as after it, since what is decided at the end of a block changes nothing before it.

Own arguments: ``pretrained`` (also an embedded name or a GGUF file), ``policy`` (``namm``, ``full`` or a hand-designed
rule), ``memory``, and ``kept`` (for ``namm``) or ``budget`` (for the hand-designed rules, also in tokens). Of those of
lm_eval's ``hf`` model the ones in `SCORING` mean the same here, and what `HFLM` does not know goes to `load_model`.

Tasks that generate their texts (ruler, babilong) load a tokenizer themselves, by the name in ``pretrained``; for an
embedded model or a GGUF file give them ``tokenizer=FOLDER`` as well.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from namm.cache import MemoryCache
from namm.memory import NAMM
from namm.models import load_model
from namm.policies import Policy
from namm.policies.names import check_policies, is_budgeted, make_policy, rule_of
from namm.support.extras import require

require(["lm_eval"], "harness")
from lm_eval.api.registry import register_model  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

SCORING = frozenset(
    [
        "add_bos_token",
        "batch_size",
        "chat_template_args",
        "enable_thinking",
        "logits_cache",
        "max_batch_size",
        "max_length",
        "prefix_token_id",
        "softmax_dtype",
        "think_end_token",
        "truncation",
    ]
)
"""Arguments of `HFLM` that concern a model already loaded. It ignores its others then, so they are refused here."""
LOADING = frozenset(["revision", "subfolder", "trust_remote_code"])
"""Arguments of `HFLM` that `load_model` takes too."""


@register_model("namm")
class HarnessModel(HFLM):
    """lm_eval's ``hf`` model with a `MemoryCache` in every call; see the module."""

    def __init__(
        self,
        pretrained: str = "smollm2-135m",
        memory: str = "universal",
        policy: str = "namm",
        kept: float | None = None,
        budget: float | None = None,
        dtype: str = "auto",
        device: str | None = None,
        tokenizer: str | None = None,
        **options: Any,
    ) -> None:
        scoring, loading = split_options(options)
        self._rule = harness_policy(policy, memory, kept, budget)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, own = load_model(pretrained, dtype=dtype, device=device, **loading)
        super().__init__(pretrained=model, tokenizer=tokenizer or own, **scoring)

    def _model_call(self, inps: torch.Tensor, attn_mask: Any = None, labels: Any = None) -> torch.Tensor:
        # padding is on the right here, where nothing that counts comes after it
        with torch.no_grad():
            return self.model(inps, past_key_values=MemoryCache(self.model, self._rule)).logits

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: Any, **options: Any) -> torch.Tensor:
        cache = MemoryCache(self.model, self._rule)
        return super()._model_generate(context, max_length, stop, past_key_values=cache, **options)


def split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What of lm_eval's arguments is for scoring, and what for loading the model.

    Raises:
        ValueError: naming arguments of the ``hf`` model that would have no effect here.
    """
    ignored = inspect.signature(HFLM.__init__).parameters.keys() - SCORING - LOADING
    refused = sorted(key for key in options if key in ignored and options[key])
    if refused:
        raise ValueError(
            f"--model namm can't apply {', '.join(refused)}; leave it out, or give as pretrained a model that has it"
        )
    scoring = {key: value for key, value in options.items() if key in SCORING}
    return scoring, {key: value for key, value in options.items() if key not in SCORING | ignored}


def harness_policy(name: str, memory: str, kept: float | None, budget: float | None) -> Policy:
    """The policy that lm_eval's arguments name.

    Raises:
        ValueError: for an unknown policy, or a fraction that it does not take.
    """
    check_policies([name])
    if name == "full" and (kept is not None or budget is not None):
        raise ValueError("policy=full keeps everything; leave out kept and budget")
    if name == "namm" and budget is not None:
        raise ValueError("policy=namm takes kept=FRACTION; budget is for the hand-designed rules")
    if name != "namm" and kept is not None:
        raise ValueError(f"policy={name} takes budget=FRACTION or tokens; kept is for policy=namm")
    if is_budgeted(name) and rule_of(name).needs_rehearsal:
        raise ValueError(f"policy={name} needs a rehearsal, which lm_eval leaves no room for; `namm eval` makes one")
    if name != "namm":
        kept = 0.25 if budget is None else budget
    return make_policy(name, kept, NAMM.from_pretrained(memory))


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
