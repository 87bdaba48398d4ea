"""Which token comes next."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

COLD = 1e-4  # below it the likeliest token is as good as certain


@dataclass
class Sampling:
    """How one request chooses its tokens; what it draws depends on nothing but its own seed.

    Attributes:
        temperature: 0: always the likeliest token.
        top_p: only the likeliest tokens that are so likely together.
        seed: None: another one each time.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    _generator: torch.Generator = field(default_factory=torch.Generator, repr=False)

    def __post_init__(self) -> None:
        if self.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(self.seed)

    def choose(self, logits: Tensor) -> int:
        """A token by its logits ``[vocabulary]``.

        Raises:
            ValueError: if they are NaN.
        """
        if self.temperature < COLD or not self.top_p:
            token = int(logits.argmax())
            if bool(logits[token].isnan()):
                raise ValueError("the model's logits are NaN: try another dtype")
            return token
        logits = logits.detach().float().cpu()
        probabilities = ((logits - logits.max()) / self.temperature).softmax(-1)
        if bool(probabilities.isnan().any()):
            raise ValueError("the model's logits are NaN or infinite: try another dtype")
        if self.top_p < 1:
            sorted_, order = probabilities.sort(descending=True, stable=True)
            before = sorted_.cumsum(-1) - sorted_
            probabilities = torch.zeros_like(sorted_).scatter(0, order, sorted_.masked_fill(before >= self.top_p, 0.0))
        return int(torch.multinomial(probabilities, 1, generator=self._generator))
