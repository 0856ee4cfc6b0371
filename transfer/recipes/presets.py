"""The recipes that there are. Each says where it follows its paper and where it had to choose.

Learning rates and lengths are those for bases of 2 to 13 billion parameters. Tiny bases need far
larger ones: `Recipe.trained` sets them, and the benchmark says what it took.
"""

from dataclasses import replace

from lorebase.serving.errors import InvalidArgumentError

from ..distill.settings import DistillRecipe
from ..synthesis.draw import DrawSettings
from ..synthesis.filter import FilterPolicy
from .recipe import LoraChoice, Recipe, Selection

TRANS_LORA = Recipe(
    name="trans-lora",
    filter=FilterPolicy(calibrated=False, least_auc=0.0),
    lora=LoraChoice(target_modules=("q_proj", "v_proj"), alpha_per_rank=2.0),
    training=DistillRecipe(
        epochs=20,
        batch_size=8,
        learning_rate=2e-4,
        warmup_steps=0,
        final_learning_rate_share=0.0,
        weight_decay=0.0,
        max_gradient_norm=0.0,
    ),
)
"""Trans-LoRA (arXiv 2405.17258).

From the paper: the next base goes on from 5 seeds; an input is kept if the discriminator says yes
rather than no; |D| inputs; the source adapter's answers are hard labels; q and v only; AdamW
without weight decay, linear decay without warm-up, batch 8, 2e-4, 20 epochs. The prompts are the
kit's format (`paper` has the paper's words), the discriminator's training is the kit's (half real,
half synthetic; 2 epochs where the paper has about one).

Not in the paper, so chosen: temperature 1 and no truncation, greedy labels, the source's rank,
alpha = 2 x rank, no clipping, duplicates dropped, a cap on samples (see `draw_inputs`).
"""

TITOK = Recipe(
    name="titok",
    writer="source-adapter",
    pool=2.0,
    draw=DrawSettings(temperature=1.0, top_p=0.9),
    filter=FilterPolicy(discriminator=False),
    selection=Selection(by="excess", samples=0.5, tokens=0.7, group=4),
    lora=LoraChoice(target_modules=("q_proj", "v_proj"), alpha_per_rank=1.0, dropout=0.05),
    training=DistillRecipe(
        epochs=2,
        batch_size=4,
        learning_rate=5e-5,
        warmup_steps=0,
        warmup_share=0.1,
        final_learning_rate_share=0.0,
        weight_decay=0.01,
        max_gradient_norm=0.3,
    ),
)
"""TiTok (arXiv 2510.04682) and its published code.

From them: the source adapter itself writes and answers twice as many inputs as are used; no
discriminator; the half with the largest mean excess is kept; loss on the 70 % of tokens with the
largest excess among four answers, carried over to the other tokenizer by characters; q and v,
alpha = rank, dropout 0.05; AdamW with weight decay 0.01, clipping at 0.3, a tenth of warm-up,
batch 4, 5e-5, 2 epochs.

Left out: ROUGE-L deduplication below 0.7 (inputs of one form are all alike by it; ours drops
near-copies), and NEFTune noise. Greedy labels and the source's rank are our choice.
"""

LOREBASE = Recipe(
    name="lorebase",
    training=DistillRecipe(epochs=20, batch_size=8, learning_rate=2e-4),
)
"""Ours, the default."""

WITHOUT_KIT = replace(
    LOREBASE,
    name="lorebase-without-kit",
    pool=2.0,
    filter=FilterPolicy(discriminator=False),
    selection=Selection(by="confidence", samples=0.5),
)
"""Ours where five examples are all that is left of the data: no discriminator can be trained, so
twice as many inputs are written and the half is kept of whose answers the source adapter is sure.
It is sure of what it was trained for: on skewed data that takes the discriminator's place."""

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (LOREBASE, WITHOUT_KIT, TRANS_LORA, TITOK)
}
"""By name."""


def recipe_named(name: str) -> Recipe:
    """Returns a recipe.

    Raises:
        InvalidArgumentError: there is none of that name.
    """
    if name not in RECIPES:
        raise InvalidArgumentError(
            f"unknown recipe {name!r}: expected {', '.join(sorted(RECIPES))}"
        )
    return RECIPES[name]
