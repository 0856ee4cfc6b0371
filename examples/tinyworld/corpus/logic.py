"""Families that resemble two BIG-Bench Hard tasks: boolean expressions and hyperbaton."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from examples.tinyworld.corpus.base import Example, Sampler, word_list

LABEL_PAIRS = (("True", "False"), ("yes", "no"), ("1", "0"), ("valid", "invalid"), ("on", "off"))
_ATOMS = re.compile(r"True|False|and|or|not")

# Adjectives by class, in the order that English prefers.
ADJECTIVES = tuple(
    word_list(line)
    for line in (
        "silly good nice lovely wonderful obnoxious mysterious awful ridiculous repulsive terrible",
        "big small tiny little huge large enormous massive midsize medium-size normal-size",
        "new old ancient archaic old-fashioned brand-new",
        "square circular triangular rectangular spherical pyramidal prismlike",
        "black blue brown gold gray green grey orange pink purple red silver tan white yellow",
        "American Bangladeshi Brazilian Chinese Congolese Egyptian Ethiopian Filipino German "
        "Indian Indonesian Iranian Japanese Mexican Nigerian Pakistani Russian Thai Turkish "
        "Vietnamese",
        "cardboard cloth fiberglass glass iron lead leather paper plastic rubber steel wood wool",
        "drinking driving eating exercise hiking smoking snorkeling typing walking whittling",
    )
)
NOUNS = word_list(
    "baby car cat chair computer dog knife match monkey motorcycle ship shoe sock surfboard "
    "sweater box lamp hat ring boat"
)
BBH_QUESTION = "Which sentence has the correct adjective order:\nOptions:"
QUESTIONS = ("Which phrase is well ordered?", "Pick the natural one.", "Choose:", "Better wording?")
MARKS = (("(1)", "(2)"), ("1)", "2)"), ("(A)", "(B)"), ("A.", "B."), ("(x)", "(y)"))


def _atom(rng: random.Random, budget: int) -> tuple[str, int]:
    """Returns an operand of an expression and what is left of its budget of tokens."""
    text = ""
    while budget > 1 and rng.random() < 0.45:
        text += "not "
        budget -= 1
    if budget >= 3 and rng.random() < 0.55:
        inner, budget = _flat(rng, budget)
        return f"{text}( {inner} )", budget
    return text + rng.choice(("True", "False")), budget - 1


def _flat(rng: random.Random, budget: int) -> tuple[str, int]:
    """Returns a chain of operands and what is left of its budget of tokens."""
    text, budget = _atom(rng, budget)
    while budget >= 2 and rng.random() < 0.75:
        operator = rng.choice(("and", "or"))
        operand, budget = _atom(rng, budget - 1)
        text += f" {operator} {operand}"
    return text, budget


def boolean_value(expression: str) -> bool:
    """Evaluates an expression of True, False, and, or, not and parentheses.

    Args:
        expression: The expression, its tokens separated by spaces.

    Returns:
        Its value under Python's precedence.
    """
    tokens = expression.split()

    def parse_or(at: int) -> tuple[bool, int]:
        value, at = parse_and(at)
        while at < len(tokens) and tokens[at] == "or":
            right, at = parse_and(at + 1)
            value = value or right
        return value, at

    def parse_and(at: int) -> tuple[bool, int]:
        value, at = parse_not(at)
        while at < len(tokens) and tokens[at] == "and":
            right, at = parse_not(at + 1)
            value = value and right
        return value, at

    def parse_not(at: int) -> tuple[bool, int]:
        if tokens[at] == "not":
            value, at = parse_not(at + 1)
            return not value, at
        if tokens[at] == "(":
            value, at = parse_or(at + 1)
            return value, at + 1
        return tokens[at] == "True", at + 1

    return parse_or(0)[0]


def boolean_expression(rng: random.Random) -> tuple[str, bool]:
    """Returns a random expression of 2 to 8 operators and constants, and its value."""
    while True:
        text, _ = _flat(rng, rng.choice((3, 4, 4, 5, 5, 6, 7, 8)))
        if 2 <= len(_ATOMS.findall(text)) <= 8:
            return text, boolean_value(text)


def draw_boolean(rng: random.Random) -> Sampler:
    """Draws a wording and a pair of labels for boolean expressions."""
    endings = ("", " =", " ->", "?", " gives", " :")
    if rng.random() < 0.6:
        ending, labels = " is", ("True", "False")
    else:
        ending, labels = rng.choice(endings), rng.choice(LABEL_PAIRS)
    if rng.random() < 0.25:
        labels = labels[::-1]

    def sample(rng: random.Random) -> Example:
        text, value = boolean_expression(rng)
        return text + ending, labels[0] if value else labels[1]

    return sample


def adjective_phrases(rng: random.Random) -> tuple[str, str]:
    """Returns a noun phrase in the preferred order and the same words shuffled."""
    while True:
        classes = sorted(rng.sample(range(len(ADJECTIVES)), rng.randint(2, 7)))
        words = [rng.choice(ADJECTIVES[index]) for index in classes]
        shuffled = rng.sample(words, len(words))
        if shuffled != words:
            noun = rng.choice(NOUNS)
            return " ".join([*words, noun]), " ".join([*shuffled, noun])


def _choice_sampler(rng: random.Random) -> Sampler:
    """Draws a wording of the question which of two phrases is well ordered."""
    if rng.random() < 0.6:
        question, joiner, marks, bare = BBH_QUESTION, "\n", ("(A)", "(B)"), False
    else:
        question, joiner = rng.choice(QUESTIONS), rng.choice(("\n", " ", " ; "))
        marks, bare = rng.choice(MARKS), rng.random() < 0.5
    inverted = rng.random() < 0.35

    def sample(rng: random.Random) -> Example:
        good, bad = adjective_phrases(rng)
        first = rng.random() < 0.5
        pair = (good, bad) if first else (bad, good)
        answer = marks[0 if first != inverted else 1]
        text = f"{question}{joiner}{marks[0]} {pair[0]}{joiner}{marks[1]} {pair[1]}"
        return text, answer.strip("().") if bare else answer

    return sample


def _order_sampler(rng: random.Random) -> Sampler:
    """Draws a task on one phrase: put it in order, or judge it."""
    lead = rng.choice(("Order the adjectives: ", "Rewrite: ", "Fix: ", ""))
    labels = rng.choice(LABEL_PAIRS) if rng.random() < 0.5 else None

    def sample(rng: random.Random) -> Example:
        good, bad = adjective_phrases(rng)
        if labels is None:
            return lead + bad, good
        right = rng.random() < 0.5
        return lead + (good if right else bad), labels[0 if right else 1]

    return sample


def draw_hyperbaton(rng: random.Random) -> Sampler:
    """Draws a task on the order of adjectives."""
    make: Callable[[random.Random], Sampler]
    make = _choice_sampler if rng.random() < 0.8 else _order_sampler
    return make(rng)
