"""A small part of the tiny world for the transfer suite: few examples, hardly any training."""

from dataclasses import replace

from benchmarks.transfer.world import World, tinyworld
from examples.tinyworld.places import base_dir
from lorebase.transfer.distill import DistillRecipe

TASK = "acme/date-long-to-dot"


def small_world() -> World:
    """Returns one task of the tiny world with 40 real and 20 test examples."""
    world = tinyworld(base_dir("old").parent)
    task = world.tasks[TASK]
    return replace(
        world,
        tasks={TASK: replace(task, real=task.real[:40], test=task.test[:20], split="final")},
        held_out=20,
        source_training=DistillRecipe(steps=40, batch_size=8, learning_rate=5e-3),
        tuning={
            "lorebase": {"steps": 40, "batch_size": 8, "learning_rate": 5e-3},
            "titok": {"steps": 2, "learning_rate": 5e-3},
        },
    )
