"""Video under a memory made on text: a small LLaVA-NeXT-Video that answers questions about moving digits.

    python examples/video.py train OUT       # the model, from nothing
    python examples/video.py evaluate OUT    # accuracy by what is kept, and which frames are dropped

A clip shows handwritten digits one after another, each on a ground of its own colour for some time, drifting about. The
question names a colour; the answer is the digit. Most frames say nothing new. Needs the extra `video`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from fitting import RULES, apart, counted, digest, fit, furthest
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

import namm
from namm.evaluation import mean_interval
from namm.policies import NAMMPolicy, Policy
from namm.policies.names import make_policy
from namm.support.journal import Journal, Row
from namm.support.plotting import pyplot

SIDE, PER_FRAME = 32, 4  # pixels of a frame's side; tokens of a frame
NEWS = 4  # frames at the beginning of a scene that count as news
START, END, VIDEO, QUESTION, COLOUR, DIGIT, WORDS = 1, 2, 4, 5, 10, 20, 32
COLOURS = np.array([[0.8, 0, 0], [0, 0.6, 0], [0, 0, 0.9], [0.6, 0.5, 0], [0.6, 0, 0.6], [0, 0.5, 0.6]], np.float32)
SCENES = len(COLOURS)


class Clips:
    """Clips drawn from a seed; those for testing show handwriting that training never saw."""

    def __init__(self, split: str) -> None:
        found = load_digits()
        chosen = np.arange(len(found.target)) % 5 == 0
        chosen = chosen if split == "test" else ~chosen
        self.digits = (found.images[chosen] / 16).repeat(2, axis=1).repeat(2, axis=2).astype(np.float32)
        self.labels = found.target[chosen]

    def draw(self, seed: tuple[int, ...], frames: int, scenes: int = SCENES) -> tuple[np.ndarray, ...]:
        """Frames ``[frames, 3, SIDE, SIDE]``, and for each scene its colour, its digit, and its first frame."""
        random = np.random.default_rng(seed)
        cuts = np.sort(random.choice(np.arange(1, frames), scenes - 1, replace=False))
        starts = np.r_[0, cuts]
        colours, shown = random.permutation(SCENES)[:scenes], random.integers(0, len(self.labels), scenes)
        clip = np.empty((frames, 3, SIDE, SIDE), np.float32)
        for first, last, colour, digit in zip(starts, np.r_[cuts, frames], colours, shown, strict=True):
            place, speed = random.uniform(0, SIDE - 16, 2), random.uniform(-0.5, 0.5, 2)
            for at in range(first, last):
                place = place + speed
                speed = np.where((place < 0) | (place > SIDE - 16), -speed, speed)
                place = place.clip(0, SIDE - 16)
                ink = np.zeros((SIDE, SIDE), np.float32)
                row, column = 8 * (place / 8).round().astype(int)  # a patch at a time: quicker to learn
                ink[row : row + 16, column : column + 16] = self.digits[digit]
                clip[at] = COLOURS[colour][:, None, None] * (1 - ink) + ink
        clip += random.normal(0, 0.05, clip.shape).astype(np.float32)
        return clip, colours, self.labels[shown], starts

    def batch(
        self, seed: tuple[int, ...], clips: int, frames: int, questions: int, scenes: int = SCENES
    ) -> tuple[dict, Tensor, np.ndarray]:
        """A model's inputs, the answers ``[clips, questions]``, and the scenes' first frames ``[clips, scenes]``.

        Behind every question but the last stands its answer.
        """
        videos, words, answers, starts = [], [], [], []
        for number in range(clips):
            clip, colours, digits, first = self.draw((*seed, number), frames, scenes)
            asked = np.random.default_rng((*seed, number, 1)).permutation(scenes)[:questions]
            text = [[QUESTION, COLOUR + colours[scene], DIGIT + digits[scene]] for scene in asked]
            words.append([START, *[VIDEO] * (frames * PER_FRAME), *np.concatenate(text)[:-1].tolist()])
            videos.append(clip)
            answers.append(DIGIT + digits[asked])
            starts.append(first)
        inputs = {"input_ids": torch.tensor(words), "pixel_values_videos": torch.from_numpy(np.stack(videos))}
        return inputs, torch.from_numpy(np.stack(answers)), np.stack(starts)


def make_model() -> LlavaNextVideoForConditionalGeneration:
    """Half a million parameters with random weights."""
    torch.manual_seed(0)
    seeing = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    reading = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    special = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": 0}
    rest = {"num_key_value_heads": 2, "vocab_size": WORDS, "max_position_embeddings": 4096}
    config = LlavaNextVideoConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": SIDE, "patch_size": 8, **seeing},
        text_config={"model_type": "llama", **reading, **special, **rest},
        image_token_index=3,
        video_token_index=VIDEO,
        spatial_pool_stride=2,  # 16 patches a frame become 4 tokens
    )
    model = LlavaNextVideoForConditionalGeneration(config)
    for weight in model.parameters():
        if weight.ndim > 1:  # the usual 0.02 is for large models: at this size nothing is learned for long
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return model


def train(arguments: argparse.Namespace) -> None:
    model, clips = make_model(), Clips("train")

    def loss_at(update: int) -> Tensor:
        random, done = np.random.default_rng((update, 7)), update / arguments.updates
        scenes = min(SCENES, 1 + int(done * 20))  # one digit to see at first, then several to tell apart,
        low, high = (scenes, 12) if done < 0.5 else (12, 64) if done < 0.8 else (64, arguments.frames)
        frames = min(arguments.frames, int(random.integers(low, high + 1)))  # then longer and longer to remember
        inputs, answers, _ = clips.batch((update,), max(2, 384 // frames), frames, scenes, scenes)
        asked = 3 * np.arange(scenes) + 2  # where each question ends with a colour
        logits = model(**inputs, logits_to_keep=3 * scenes).logits[:, asked]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten())

    fit(model, loss_at, arguments.updates, arguments.output / "training.pt")
    model.save_pretrained(arguments.output / "model")


def watch(model, policy, clips: Clips, seed: int, frames: int) -> tuple[Row, np.ndarray]:
    """One clip, then one question; and the share of layers, heads and tokens that hold each frame when it is asked."""
    inputs, answers, starts = clips.batch((10**6, seed), 1, frames, 1)
    cache = namm.MemoryCache(model, policy)
    seen, asked = inputs["input_ids"].split([1 + frames * PER_FRAME, 2], dim=1)
    with torch.inference_mode():
        model(seen, pixel_values_videos=inputs["pixel_values_videos"], past_key_values=cache, logits_to_keep=1)
        cache.settle()
        kept, positions = cache.stats().kept_fraction, cache.positions()
        found = model(asked, past_key_values=cache, logits_to_keep=1).logits[0, -1].argmax()
    held = np.zeros(frames)
    rows = [head.numpy() for layer in positions for head in layer[0]]
    for row in rows:
        np.add.at(held, (row[row >= 1] - 1) // PER_FRAME, 1 / (PER_FRAME * len(rows)))
    since = np.arange(frames) - starts[0][np.searchsorted(starts[0], np.arange(frames), side="right") - 1]
    return {
        "correct": bool(found == answers[0, 0]),
        "kept": kept,
        "news": held[since < NEWS].mean(),
        "others": held[since >= NEWS].mean(),
    }, held


def policy_of(name: str, aim: float | None, memory: namm.NAMM, arguments: argparse.Namespace) -> Policy:
    policy = make_policy(name, aim, memory)
    return replace(policy, spread=arguments.spread) if isinstance(policy, NAMMPolicy) else policy


def evaluate(arguments: argparse.Namespace) -> None:
    model = LlavaNextVideoForConditionalGeneration.from_pretrained(arguments.output / "model").eval()
    memory, clips = namm.NAMM.from_pretrained(arguments.memory), Clips("test")
    journal = Journal(arguments.output / "clips.jsonl")
    seeing, remembering = digest(model.parameters()), digest([memory.flat], memory.config)

    def run(name: str, aim: float | None) -> list[Row]:
        title = name if aim is None else f"{name} {aim:.2f}"
        policy = policy_of(name, aim, memory, arguments)
        by = f"{remembering} {arguments.spread:g}" if name == "namm" else memory.config.update_interval
        key = f"{seeing} {name} {aim} {by} {arguments.frames}"
        return [
            journal.get(f"{key} {seed}", lambda seed=seed: watch(model, policy, clips, seed, arguments.frames)[0])
            for seed in counted(range(arguments.clips), title)
        ]

    table = Table(
        title=f"{arguments.clips} clips of {arguments.frames} frames; held: share of layers, heads and tokens"
    )
    headings = ("policy", "kept", "furthest", "right", "less namm", "news held", "others held", "news less others")
    for heading in headings:
        table.add_column(heading, justify="right" if heading != "policy" else "left")

    def show(title: str, rows: list[Row], aim: float, own: list[Row] | None) -> None:
        mean, half = mean_interval([float(row["correct"]) for row in rows])
        kept, news, others = (np.mean([row[field] for row in rows]) for field in ("kept", "news", "others"))
        gain, spread = mean_interval([row["news"] - row["others"] for row in rows])
        line = [title, f"{kept:.3f}", f"{furthest(rows, aim):.3f}", f"{mean:.3f} ± {half:.3f}"]
        line += ["" if own is None else apart(rows, own, "correct", ".3f")]
        table.add_row(*line, f"{news:.3f}", f"{others:.3f}", f"{gain:+.3f} ± {spread:.3f}")

    show("full", run("full", None), 1.0, None)
    for aim in arguments.kept:
        own = run("namm", aim)
        show(f"namm, aimed at {aim:g}", own, aim, None)
        kept = round(float(np.mean([row["kept"] for row in own])), 3)
        for name in arguments.rules:
            show(name, run(name, kept), kept, own)
    Console(width=140).print(table)
    print(f"news: the first {NEWS} frames of a scene; furthest: of a clip's fraction kept from what was aimed at")
    draw(model, memory, clips, arguments)


def draw(model, memory: namm.NAMM, clips: Clips, arguments: argparse.Namespace) -> None:
    """Every eighth frame, the same faded by what is forgotten of it, and the share held of every frame."""
    plots = pyplot()
    sizes = {"figsize": (12, 3.4), "height_ratios": (1, 1, 2), "layout": "constrained"}
    figure, panels = plots.subplots(3, 1, sharex=True, **sizes)
    frames, _, _, starts = clips.draw((10**6, 0, 0), arguments.frames)
    policy = policy_of("namm", min(arguments.kept), memory, arguments)
    row, held = watch(model, policy, clips, 0, arguments.frames)
    frames = frames.clip(0, 1).transpose(0, 2, 3, 1)
    faded = 1 - (1 - frames) * held[:, None, None, None]
    for panel, strip, name in zip(panels, (frames, faded), ("seen", "held"), strict=False):
        shown = np.concatenate(list(strip[::8]), axis=1)
        panel.imshow(shown, extent=(-0.5, 8 * len(strip[::8]) - 0.5, 0, 1), aspect="auto")
        panel.set_yticks([])
        panel.set_ylabel(name)
    panels[2].bar(np.arange(len(held)), held, width=1.0)
    for start in starts:
        panels[2].axvline(start - 0.5, color="black", linewidth=0.8, linestyle=":")
    label = f"frame (dotted: a new scene); {row['kept']:.2f} of all tokens kept"
    panels[2].set(xlim=(-0.5, len(held) - 0.5), ylim=(0, 1), xlabel=label, ylabel="share held")
    figure.savefig(arguments.output / "frames.png", dpi=150)
    plots.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("train", "evaluate"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--memory", default="universal")
    parser.add_argument("--spread", type=float, default=4.0, help="of the memory's scores, see NAMMPolicy")
    parser.add_argument("--kept", type=float, nargs="+", default=[0.5, 0.25, 0.125], help="fractions aimed at")
    parser.add_argument("--rules", nargs="*", default=RULES, help="hand-designed ones that keep as much")
    arguments = parser.parse_args()
    if arguments.frames < SCENES:
        parser.error(f"a clip has {SCENES} scenes and needs as many frames")
    if arguments.action == "evaluate" and not (arguments.output / "model").is_dir():
        parser.error(f"{arguments.output} holds no model: train first")
    arguments.output.mkdir(parents=True, exist_ok=True)
    train(arguments) if arguments.action == "train" else evaluate(arguments)


if __name__ == "__main__":
    main()
