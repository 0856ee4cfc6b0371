"""A distill job on tiny random bases."""

from dataclasses import asdict, replace
from pathlib import Path

from lorebase.serving.artifacts import ArtifactStore
from lorebase.transfer.distill import DistillRecipe
from lorebase.transfer.kit import DOCUMENT, TransferKit, save_kit
from lorebase.transfer.ports import Example
from lorebase.transfer.recipes import LOREBASE, Recipe
from lorebase.transfer.upgrade.ports import DistillJob

from .tiny_models import make_tiny_adapter, make_tiny_base


def make_job(root: Path, *, steps: int, recipe: Recipe = LOREBASE) -> DistillJob:
    """Writes two tiny random bases, a kit and labelled examples, and returns the job on them."""
    old = make_tiny_base(root / "old", "llama")
    following = make_tiny_base(root / "next", "qwen3", seed=3)
    store = ArtifactStore(root / "store")
    examples = [Example(input=f"number {n}", target=f"{n}") for n in range(40)]
    kit = TransferKit(
        base_id="old",
        dataset_name="numbers",
        dataset_size=40,
        format=DOCUMENT,
        seeds=tuple(examples[:3]),
        threshold=0.0,
        discriminator_auc=0.9,
        real_pass_rate=0.9,
        fake_pass_rate=0.9,
        max_input_chars=100,
        max_input_tokens=40,
        max_answer_tokens=20,
    )
    save_kit(kit, make_tiny_adapter(root / "discriminator", old), root / "kit")
    source = make_tiny_adapter(root / "source", old, rank=4, target_modules=("q_proj", "v_proj"))
    labelled = {"training": [asdict(one) for one in examples], "held_out": []}
    return DistillJob(
        key="m-1/distill/1",
        store_root=root / "store",
        work_root=root / "work",
        base_id="next",
        base_dir=following,
        examples_digest=store.put_json(labelled),
        kit_digest=store.put_dir(root / "kit"),
        source_digest=store.put_dir(source),
        source_base_dir=old,
        recipe=replace(
            recipe, training=DistillRecipe(steps=steps, batch_size=4, learning_rate=1e-3)
        ),
        seed=7,
    )
