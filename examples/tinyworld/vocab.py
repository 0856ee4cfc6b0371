"""Tokenizers of the bases, trained on the corpus."""

from __future__ import annotations

import itertools
import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from examples.tinyworld.corpus.documents import document

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
VOCABULARY = {"old": 768, "next": 1024, "later": 896}
# The old base keeps the space with the word that follows and one digit a token. The others split
# punctuation off as well and attach the space to marks and words alike; the next one makes each
# mark a token, the later one keeps marks in runs.
PATTERNS = {
    "next": r" ?[A-Za-z]+| ?[^A-Za-z0-9\s]|[0-9]|\s",
    "later": r" ?[A-Za-z]+| ?[^A-Za-z0-9\s]+|[0-9]|\s",
}
TRAINING_SEED = 5
TRAINING_DOCUMENTS = 12_000


def build_tokenizer(base: str) -> PreTrainedTokenizerFast:
    """Trains the tokenizer of one base.

    Args:
        base: `old`, `next` or `later`.

    Returns:
        A byte-level BPE tokenizer that keeps every newline a token of its own, puts `<s>` before
        a prompt (but not where special tokens are declined) and has `<pad>`, `<s>`, `</s>` at
        0, 1, 2.
    """
    steps = [
        pre_tokenizers.Split("\n", "isolated"),
        pre_tokenizers.Digits(individual_digits=True),
    ]
    if base == "old":
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    else:
        steps.append(pre_tokenizers.Split(Regex(PATTERNS[base]), "isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(TRAINING_SEED)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY[base],
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (document(rng) for _ in range(TRAINING_DOCUMENTS))
    # The discriminator's two answers must each become one token.
    answers = itertools.repeat("Real: yes\nReal: no\n", TRAINING_DOCUMENTS)
    tokenizer.train_from_iterator(itertools.chain(texts, answers), trainer)
    # Servers encode a prompt with whatever the tokenizer adds; documents begin with it too.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        model_max_length=2048,
    )
    check_tokenizer(wrapped)
    return wrapped


def check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raises ValueError if prompts would not be encoded as the documents of the corpus are."""
    if tokenizer.encode("\n")[0] != tokenizer.bos_token_id:
        message = f"a prompt does not begin with {BOS}"
        raise ValueError(message)
    for text in ("\n", " yes", " no"):
        if len(tokenizer.encode(text, add_special_tokens=False)) != 1:
            message = f"{text!r} is not a single token"
            raise ValueError(message)
