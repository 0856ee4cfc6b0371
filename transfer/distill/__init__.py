"""Trains adapters: of the next base from the teacher's answers, and of discriminators."""

from .settings import ALL_LINEAR, DistillRecipe, LoraSettings, present_modules

__all__ = ["ALL_LINEAR", "DistillRecipe", "LoraSettings", "present_modules"]
