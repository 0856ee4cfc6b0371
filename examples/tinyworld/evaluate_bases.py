"""Measures a published base per corpus family: accuracy with no shots and with five.

    python -m examples.tinyworld.evaluate_bases --base old --threads 1

Every question comes from a convention drawn anew. Without shots the convention is unknown, so a
low figure is what we want there; with five shots it can be read off the examples.
"""

from __future__ import annotations

import argparse
import json
import random

import torch

from examples.tinyworld.bases import BASE_NAMES, load
from examples.tinyworld.corpus.base import Example, Family
from examples.tinyworld.corpus.documents import FAMILIES
from examples.tinyworld.generate import MAX_ANSWER_TOKENS, generate
from examples.tinyworld.places import base_dir
from examples.tinyworld.tasks import few_shot

QUESTIONS = 150
SHOTS = 5
SEED = 777


def questions(family: Family, count: int) -> list[list[Example]]:
    """Draws questions: per convention, the shots and last the example to answer."""
    rng = random.Random(f"{SEED}|{family.name}")
    drawn = []
    for _ in range(count):
        sampler = family.draw(rng)
        drawn.append([sampler(rng) for _ in range(SHOTS + 1)])
    return drawn


def evaluate(base: str, count: int = QUESTIONS) -> dict[str, dict[str, float]]:
    """Measures a base on every family.

    Args:
        base: `old`, `next` or `later`.
        count: Questions a family.

    Returns:
        Accuracy by family and number of shots.
    """
    model, tokenizer = load(base)
    figures: dict[str, dict[str, float]] = {}
    for family in FAMILIES:
        drawn = questions(family, count)
        figures[family.name] = {}
        for label, shots in (("zero-shot", 0), ("five-shot", SHOTS)):
            prompts = [few_shot(group[:shots], group[-1][0]) for group in drawn]
            found = generate(model, tokenizer, prompts, max_new_tokens=MAX_ANSWER_TOKENS, stop="\n")
            right = sum(
                text.split("\n")[0].strip() == group[-1][1]
                for text, group in zip(found, drawn, strict=True)
            )
            figures[family.name][label] = round(right / count, 3)
    return figures


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", choices=BASE_NAMES, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures = evaluate(args.base, args.questions)
    target = base_dir(args.base) / "evaluation.json"
    target.write_text(json.dumps(figures, indent=2) + "\n")
    for name, values in figures.items():
        print(name, values)


if __name__ == "__main__":
    main()
