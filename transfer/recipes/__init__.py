"""Recipes of transfer as data, and the training and the offline run that follow them.

Importing this needs neither torch nor transformers; `shadow` and `run` do.
"""

from .presets import LOREBASE, RECIPES, TITOK, TRANS_LORA, WITHOUT_KIT, recipe_named
from .recipe import LoraChoice, OnPolicy, Recipe, Selection, Writer

__all__ = [
    "LOREBASE",
    "RECIPES",
    "TITOK",
    "TRANS_LORA",
    "WITHOUT_KIT",
    "LoraChoice",
    "OnPolicy",
    "Recipe",
    "Selection",
    "Writer",
    "recipe_named",
]
