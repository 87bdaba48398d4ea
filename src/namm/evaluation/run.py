"""An evaluation: tasks by policies by budgets for one model, with every finished sample on disk at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from namm.evaluation.benchmarks.base import Question, Request, SkippedTaskError, Task
from namm.evaluation.benchmarks.metrics import METRICS
from namm.evaluation.replies import Prompt, Reply, prompt_of, reply
from namm.memory import NAMM
from namm.policies.names import budget_of, check_policies, make_policy
from namm.support.extras import require
from namm.support.fingerprints import fingerprint, model_fingerprint
from namm.support.journal import Journal, Row
from namm.support.version import VERSION
from namm.tasks.encode import encode
from namm.tasks.metrics import LIKELIHOOD, check_metric

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class EvalConfig:
    """How tasks are run; together with a question it determines a row of the results.

    Attributes:
        model: its name, as the user gave it.
        memory: likewise.
        policies: of `namm.policies.names.POLICIES`.
        budgets: fractions to keep up to 1, numbers of tokens a head above. The memory keeps each; what it really kept
            of a sample is what the hand-designed rules may keep of that sample (without the memory among the policies:
            the budget itself).
        question_seen: decide what to keep after the question instead of before it.
        chat: put prompts into the model's chat template, but for those that are texts to go on with.
        window: tokens of prompt and answer at most, the middle of the context goes; None: the model's own.
        batch: prompts at once.
        rope_factor: the model's positions were stretched by this.
        rehearse: policies that look at a rehearsal get one, not only those that need it.
    """

    model: str
    memory: str
    policies: tuple[str, ...]
    budgets: tuple[float, ...] = (0.5, 0.25)
    question_seen: bool = False
    window: int | None = None
    batch: int = 1
    rope_factor: float = 1.0
    chat: bool = False
    rehearse: bool = False

    def __post_init__(self) -> None:
        check_policies(self.policies)
        for budget in self.budgets:
            budget_of(budget)
        if not self.budgets or not self.policies:
            raise ValueError("an evaluation needs a budget and a policy")
        if self.batch < 1:
            raise ValueError(f"a batch has at least one prompt, not {self.batch}")


@dataclass(frozen=True)
class Evaluation:
    """A loaded model and memory, and what is to be done with them.

    Attributes:
        progress: called with a task, how many of its samples are done, how many there are, and the policy at work.
        skipped: called with one line for each task that can't be had.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    memory: NAMM
    config: EvalConfig
    journal: Journal
    progress: Callable[[str, int, int, str], None] = lambda task, done, total, policy: None
    skipped: Callable[[str], None] = lambda line: None

    def run(self, tasks: Sequence[Task], request: Request) -> list[Row]:
        """All rows, those of earlier runs of the same journal included.

        Raises:
            ValueError, ImportError: see `prepare`; ValueError for malformed data, before its task is measured.
        """
        prepare(tasks)
        rows: list[Row] = []
        for task in tasks:
            try:
                questions = list(task.questions(request))
            except SkippedTaskError as error:
                self.skipped(f"{task.name} is skipped: {error}")
                continue
            size = 1 if task.metric == LIKELIHOOD else self.config.batch
            for first in range(0, len(questions), size):
                rows += self._batch(task, questions[first : first + size], first, len(questions))
            self.progress(task.name, len(questions), len(questions), "")
        return rows

    def _batch(self, task: Task, questions: Sequence[Question], done: int, total: int) -> Iterator[Row]:
        prompts = [self._prompt(task, question) for question in questions]
        for aim in self.config.budgets:
            kept = aim
            for policy in self._order(aim):
                self.progress(task.name, done, total, policy)
                rows = self._measure(task, questions, prompts, policy, aim, kept)
                if policy == "namm":
                    kept = sum(row["kept"] for row in rows) / len(rows)
                yield from rows

    def _order(self, aim: float) -> list[str]:
        """The memory before those whose budget follows from it; the full cache once."""
        full = [policy for policy in self.config.policies if policy == "full" and aim == self.config.budgets[0]]
        own = [policy for policy in self.config.policies if policy == "namm"]
        return full + own + [policy for policy in self.config.policies if policy not in ("full", "namm")]

    def _following(self, text: str) -> Tensor:
        """``[tokens]`` of a text that goes on from a context."""
        return encode(self.tokenizer, text, begins=False)[0]

    def _prompt(self, task: Task, question: Question) -> Prompt:
        window = self._window()
        after = len(self._following(question.answers[0])) if task.metric == LIKELIHOOD else self._new_tokens(task)
        try:
            prompt = prompt_of(self.tokenizer, task, question, chat=self.config.chat)
        except ValueError as error:
            raise ValueError(f"{task.name}, {question.name}: {error}") from None
        return prompt.cut_in_the_middle(window - after) if window else prompt

    def _window(self) -> int | None:
        config: Any = self.model.config.get_text_config(decoder=True)
        return self.config.window or getattr(config, "max_position_embeddings", None)

    def _new_tokens(self, task: Task) -> int:
        """As published, but never more than half a window."""
        window = self._window()
        return min(task.new_tokens, window // 2) if window else task.new_tokens

    def _measure(
        self,
        task: Task,
        questions: Sequence[Question],
        prompts: Sequence[Prompt],
        policy: str,
        aim: float,
        kept: float,
    ) -> list[Row]:
        """Rows of one batch under one policy, from the journal where all of them are there."""
        keys = [self._key(task, q, p, policy, aim, kept) for q, p in zip(questions, prompts, strict=True)]
        if all(key in self.journal.rows for key in keys):
            return [self.journal.rows[key] for key in keys]
        reference = self._following(questions[0].answers[0]) if task.metric == LIKELIHOOD else None
        budget = kept if policy not in ("full", "namm") else aim
        replies = reply(
            self.model,
            self.tokenizer,
            prompts,
            make_policy(policy, budget, self.memory, self.config.rehearse),
            new_tokens=self._new_tokens(task),
            question_seen=self.config.question_seen,
            rehearse=self.config.rehearse,
            reference=reference,
        )
        found = []
        for key, question, prompt, answer in zip(keys, questions, prompts, replies, strict=True):
            row = self._row(task, question, prompt, answer) | {"policy": policy, "aim": aim, "budget": budget}
            found.append(self.journal.add(key, row))
        return found

    def _row(self, task: Task, question: Question, prompt: Prompt, answer: Reply) -> Row:
        described = {
            name: getattr(self.config, name)
            for name in ("model", "memory", "question_seen", "chat", "window", "rope_factor", "rehearse")
        }
        return described | {
            "version": VERSION,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "task": task.name,
            "metric": task.metric,
            "sample": question.name,
            "place": dict(question.place),
            "tokens": len(prompt.context) + len(prompt.question),
            "answers": list(question.answers),
            "text": answer.text,
            "log_probability": answer.log_probability,
            "score": score_of(task, question, answer),
            "kept": answer.kept_fraction,
            "held": answer.held_fraction,
            "seconds": answer.seconds,
        }

    def _key(self, task: Task, question: Question, prompt: Prompt, policy: str, aim: float, kept: float) -> str:
        """Readable, and a digest of all that the result depends on."""
        depends = [
            VERSION,
            self.config.model,
            self._model,
            self.config.rope_factor,
            self.config.question_seen,
            task.metric,
            self._new_tokens(task),
            task.stop,
            fingerprint(prompt.context, prompt.question),
            question.answers,
            question.classes,
        ]
        if policy != "full":
            depends += [self.config.memory, self.memory.fingerprint(), round(kept, 9)]
            depends += ["rehearsed"] * self.config.rehearse
        found = fingerprint(depends)
        return f"{task.name} {question.name} {policy} {aim if policy != 'full' else 1.0} {found}"

    @cached_property
    def _model(self) -> str:
        return model_fingerprint(self.model)


def prepare(tasks: Sequence[Task], *, plots: bool = False) -> None:
    """Before anything is loaded or measured: is all there that scoring (and drawing) will need?

    Raises:
        ValueError: for a metric that is not known. ImportError: naming a package and how to install it.
    """
    for task in tasks:
        try:
            check_metric(task.metric, METRICS)
        except (ValueError, ImportError) as error:
            raise type(error)(f"{task.name}: {error}") from None
    if plots:
        require(["matplotlib"], "eval")


def score_of(task: Task, question: Question, answer: Reply) -> float:
    """The task's metric of a reply, whose text ends before the first of the task's stops."""
    if answer.log_probability is not None:
        return math.exp(answer.log_probability)
    text = answer.text.lstrip("\n")
    for stop in task.stop:
        text = text.split(stop, 1)[0]
    return METRICS[task.metric](text, question.answers, question.classes)
