"""Trains a LoRA on (prompt, answer) pairs: one linear, seeded recipe."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from lorebase.serving.errors import InvalidArgumentError

from ..ports import Checkpoint, no_checkpoint
from .attach import attach, detach
from .batches import TokenPair, encode_pairs, plan_batches
from .collate import IGNORED, collate, collate_signals
from .files import ResumePoint, load_weights, save_adapter
from .losses import chunk_loss, weighted_cross_entropy
from .settings import DistillRecipe, LoraSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """What a training run did."""

    steps: int
    examples: int
    skipped_examples: int
    """Left out for being too long or having no answer."""
    tokens: int
    """Real tokens, padding not counted, in the steps of this process."""
    padding_share: float
    seconds: float
    """Wall time of the steps of this process, waiting at checkpoints included."""
    steps_per_second: float
    first_loss: float
    last_loss: float
    """Means of the first and last tenth of the steps of this process, nats per answer token."""
    parameters: int
    """Trained."""
    resumed_from: int
    """Step at which an interrupted run was taken up; 0 for a run from the start."""


def train_lora(
    *,
    model: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    lora: LoraSettings,
    recipe: DistillRecipe,
    out_dir: Path,
    base_id: str = "",
    checkpoint: Checkpoint = no_checkpoint,
) -> TrainSummary:
    """Trains a LoRA on (prompt, answer) pairs; the answers hold their stop. See `train_tokens`.

    Raises:
        InvalidArgumentError: no usable pairs, or no such target modules.
        FloatingPointError: the loss is not finite.
    """
    examples, skipped = encode_pairs(tokenizer, pairs, max_tokens=recipe.max_tokens)
    if not examples:
        raise InvalidArgumentError(
            f"got {len(pairs)} pairs of which {skipped} are empty or longer than "
            f"{recipe.max_tokens} tokens; expected at least one to train on"
        )
    summary = train_tokens(
        model=model,
        examples=examples,
        lora=lora,
        recipe=recipe,
        out_dir=out_dir,
        base_id=base_id,
        checkpoint=checkpoint,
    )
    return replace(summary, skipped_examples=skipped)


def train_tokens(
    *,
    model: Any,
    examples: Sequence[TokenPair],
    lora: LoraSettings,
    recipe: DistillRecipe,
    out_dir: Path,
    base_id: str = "",
    start_from: Path | None = None,
    checkpoint: Checkpoint = no_checkpoint,
) -> TrainSummary:
    """Trains a LoRA and writes a PEFT directory.

    The loss counts the answers' tokens only (see `losses`), AdamW, warm-up and linear decay,
    length-bucketed batches. fp32 on CPU, bf16 autocast on a GPU. The same arguments give the same
    adapter on the same machine. The model is left without the adapter, frozen and in evaluation
    mode.

    Args:
        model: transformers causal language model.
        examples: at least one, none longer than `recipe.max_tokens`.
        lora: shape of the adapter.
        recipe: how to train. With `save_every`, a run that was interrupted goes on from the
            last resume point in `out_dir`.
        out_dir: gets adapter_config.json and adapter_model.safetensors.
        base_id: goes into the adapter's config; a plain name, never a path.
        start_from: PEFT directory of an adapter of the same shape to go on from; by default a
            fresh one.
        checkpoint: called before every step; may block or raise to cancel.

    Raises:
        InvalidArgumentError: no such target modules, or `start_from` has another shape.
        FloatingPointError: the loss is not finite.
    """
    total = recipe.total_steps(len(examples))
    batches = plan_batches(
        [len(example) for example in examples],
        batch_size=recipe.batch_size,
        steps=total,
        seed=recipe.seed,
    )
    adapted = attach(model, lora, examples, seed=recipe.seed, base_id=base_id)
    try:
        start = load_weights(adapted, start_from) if start_from else ""
        resume = ResumePoint(out_dir, identity=(lora, recipe, base_id, start, examples))
        summary = _run(adapted, examples, batches, lora, recipe, resume, checkpoint)
        save_adapter(adapted, out_dir, dtype=getattr(torch, recipe.weights_dtype))
        resume.clear()
    finally:
        detach(adapted, model)
    return summary


def _run(
    adapted: Any,
    examples: Sequence[TokenPair],
    batches: Sequence[Sequence[int]],
    lora: LoraSettings,
    recipe: DistillRecipe,
    resume: ResumePoint,
    checkpoint: Checkpoint,
) -> TrainSummary:
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    total = len(batches)
    first_step = resume.load(adapted, optimizer) if recipe.save_every else 0
    device = parameters[0].device
    pad_id = 0  # Never attended to and never scored, so any id does.
    losses: list[float] = []
    tokens = padded = 0
    started = time.perf_counter()
    adapted.train()
    for step in range(first_step, total):
        checkpoint(step / total)
        batch = [examples[i] for i in batches[step]]
        ids_BT, labels_BT, keep = collate(batch, pad_id)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step, total)
        with _dropout_seed(lora, recipe.seed, step), _precision(device):
            logits_BKV = adapted(
                input_ids=ids_BT.to(device), use_cache=False, logits_to_keep=keep
            ).logits
            loss = _answer_loss(logits_BKV, labels_BT.to(device), batch, recipe)
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.max_gradient_norm:
            torch.nn.utils.clip_grad_norm_(parameters, recipe.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(_finite(loss, step))
        tokens += sum(map(len, batch))
        padded += ids_BT.numel()
        if recipe.save_every and (step + 1) % recipe.save_every == 0 and step + 1 < total:
            resume.save(adapted, optimizer, step + 1)
    checkpoint(1.0)
    seconds = time.perf_counter() - started
    tenth = max(1, len(losses) // 10)
    return TrainSummary(
        steps=total,
        examples=len(examples),
        skipped_examples=0,
        tokens=tokens,
        padding_share=1.0 - tokens / padded if padded else 0.0,
        seconds=seconds,
        steps_per_second=len(losses) / seconds if seconds else 0.0,
        first_loss=sum(losses[:tenth]) / tenth,
        last_loss=sum(losses[-tenth:]) / tenth,
        parameters=sum(p.numel() for p in parameters),
        resumed_from=first_step,
    )


def _answer_loss(
    logits_BKV: torch.Tensor,
    labels_BT: torch.Tensor,
    batch: Sequence[TokenPair],
    recipe: DistillRecipe,
) -> torch.Tensor:
    """Returns the loss of a batch: cross entropy, chunk loss, or both by `soft_share`."""
    # Position t predicts token t + 1; the last one predicts nothing we know.
    scores_NV = logits_BKV[:, :-1].float().flatten(0, 1)
    scored = logits_BKV.shape[1] - 1
    wanted_N = labels_BT[:, -scored:].flatten()
    if recipe.soft_share == 0.0 and not any(example.weights for example in batch):
        return F.cross_entropy(scores_NV, wanted_N, ignore_index=IGNORED)
    weights_BT, chunk_BT, teacher_C = collate_signals(batch, labels_BT.shape[1])
    loss = scores_NV.new_zeros(())
    if recipe.soft_share < 1.0:
        weights_N = weights_BT[:, -scored:].flatten().to(scores_NV)
        loss = (1.0 - recipe.soft_share) * weighted_cross_entropy(scores_NV, wanted_N, weights_N)
    if recipe.soft_share > 0.0:
        chunk_N = chunk_BT[:, -scored:].flatten().to(scores_NV.device)
        soft = chunk_loss(
            scores_NV, wanted_N, chunk_N, teacher_C.to(scores_NV), recipe.soft_temperature
        )
        loss = loss + recipe.soft_share * soft
    return loss


def _precision(device: torch.device) -> AbstractContextManager[object]:
    # bf16 matrix products are far slower than fp32 on CPUs without AMX or AVX512-BF16.
    on_gpu = device.type == "cuda"
    return torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext()


@contextmanager
def _dropout_seed(lora: LoraSettings, seed: int, step: int) -> Iterator[None]:
    """Fixes dropout by seed and step, so that a resumed run drops the same."""
    if not lora.dropout:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed * 1_000_003 + step)
        yield


def _finite(loss: torch.Tensor, step: int) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError(
            f"loss {value} at step {step + 1}: lower the learning rate, or check the base"
        )
    return value
