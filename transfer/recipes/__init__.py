"""Recipes of transfer as data, and the training and the offline run that follow them.

Importing this needs neither torch nor transformers; `shadow` and `run` do.
"""

from .presets import LOREBASE, RECIPES, TITOK, TRANS_LORA, recipe_named
from .recipe import Contrast, LoraChoice, OnPolicy, Recipe, Writer

__all__ = [
    "LOREBASE",
    "RECIPES",
    "TITOK",
    "TRANS_LORA",
    "Contrast",
    "LoraChoice",
    "OnPolicy",
    "Recipe",
    "Writer",
    "recipe_named",
]
