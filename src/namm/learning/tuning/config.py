"""How a model learns."""

from __future__ import annotations

from dataclasses import dataclass

from namm.cache.engines import ENGINES

OBJECTIVES = ("lm", "answers", "distill")


@dataclass(frozen=True)
class TuneConfig:
    """How a model learns beside its memory.

    Attributes:
        objective: "lm", the next token; "answers", of questions about a context that was decided on before; "distill",
            to say under the memory what the model as it was says with its full cache.
        kept: fraction of the tokens that the memory keeps; None: nothing is forgotten, for comparison.
        steps: of the optimiser.
        batch: texts a step.
        learning_rate: at its highest, which it reaches after the first tenth of the steps, and leaves in a cosine.
        rank: of the adapters.
        alpha: what they give is multiplied by it over the rank.
        dropout: of what goes into them.
        piece: tokens fed at once, after which the heads of all layers are decided on together.
        masked: the engine of `MemoryCache` by which the memory decides beforehand, after which the text is learned from
            in one call under a mask of what was held. Faster on a GPU, in the bytes of a step on the full cache; None:
            in pieces, through the cache.
        checkpoint_layers: where a text is read in pieces, compute not only each piece but also each layer in it again,
            which takes longer and far fewer bytes.
        clip: the largest norm of a gradient.
        save_every: steps.
        seed: of everything random.
    """

    objective: str = "lm"
    kept: float | None = 0.25
    steps: int = 200
    batch: int = 1
    learning_rate: float = 2e-4
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    piece: int = 512
    masked: str | None = None
    checkpoint_layers: bool = False
    clip: float = 1.0
    save_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.steps, self.batch, self.rank, self.piece, self.save_every)
        positive = (self.learning_rate, self.alpha, self.clip)
        if min(counts) < 1 or min(positive) <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(f"bad settings of learning: {self}")
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if self.kept is not None and not 0 < self.kept < 1:
            raise ValueError(f"kept must be a fraction between 0 and 1, or None for the full cache, got {self.kept}")
        if self.masked is not None and (self.masked not in ENGINES or self.kept is None):
            raise ValueError(
                f"masked must be one of {', '.join(ENGINES)} where something is forgotten, or None; got {self.masked!r}"
            )
        if self.objective == "distill" and self.kept is None:
            raise ValueError("with its full cache a model says what it says: distilling needs a fraction to be kept")
