"""Pre-trains one tiny base from scratch on the procedural corpus.

Every batch is a function of the base's seed and the step alone, so a run resumes exactly:

    python -m examples.tinyworld.pretrain --base old --steps 2600 --threads 1 \
        --out examples/tinyworld/runs/old --resume
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from examples.tinyworld.bases import BASE_NAMES, BOS_ID, build_model, export
from examples.tinyworld.corpus.documents import document, segments
from examples.tinyworld.optim import Muon
from examples.tinyworld.places import base_dir
from examples.tinyworld.vocab import build_tokenizer

SEEDS = {"old": 11, "next": 22, "later": 33}
# Three steps in four use short rows (attention is a third of the cost on a CPU); the fourth uses
# rows long enough for a few-shot prompt of the longest task. All steps hold equally many tokens.
SHORT_ROWS = (24, 192)
LONG_ROWS = (9, 512)
LONG_EVERY = 4
STEP_TOKENS = 24 * 192
LEARNING_RATE = 3e-3
WARM_UP_STEPS = 50
CONSTANT_SHARE = 0.6
FINAL_SHARE = 0.02
ANSWER_WEIGHT = 8.0
CHECKPOINT = "checkpoint.safetensors"
LOG_EVERY = 25
SAVE_EVERY = 6 * LOG_EVERY  # so that the last entry of the history is the step saved


def encode_document(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[list[int], list[float]]:
    """Encodes a document and weights its tokens.

    Args:
        tokenizer: The base's tokenizer.
        text: A document.

    Returns:
        The token ids from BOS on, and the loss weight of each.
    """
    pieces = segments(text)
    encoded = tokenizer([piece for piece, _ in pieces], add_special_tokens=False)["input_ids"]
    ids, weights = [BOS_ID], [0.0]
    for piece, (_, is_answer) in zip(encoded, pieces, strict=True):
        ids += piece
        weights += [ANSWER_WEIGHT if is_answer else 1.0] * len(piece)
    return ids, weights


def make_batch(
    tokenizer: PreTrainedTokenizerFast, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Builds the batch of one step: rows of documents, the last of each row cut short.

    Args:
        tokenizer: The base's tokenizer.
        seed: The base's seed.
        step: Step number.

    Returns:
        Token ids and loss weights, one row each.
    """
    rng = random.Random(f"{seed}|{step}")
    count, length = LONG_ROWS if step % LONG_EVERY == LONG_EVERY - 1 else SHORT_ROWS
    rows, row_weights = [], []
    for _ in range(count):
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < length + 1:
            more, more_weights = encode_document(tokenizer, document(rng))
            ids += more
            weights += more_weights
        rows.append(ids[: length + 1])
        row_weights.append(weights[: length + 1])
    return torch.tensor(rows), torch.tensor(row_weights)


def make_optimizers(model: PreTrainedModel) -> tuple[Muon, torch.optim.AdamW]:
    """Returns Muon on the projection matrices and AdamW on embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in known]
    adam = torch.optim.AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    return Muon(matrices, lr=LEARNING_RATE), adam


def learning_rate(step: int, steps: int) -> float:
    """Returns the rate of a step: short warm-up, constant, then linear decay."""
    done = step / steps
    decay = 1.0 if done < CONSTANT_SHARE else (1 - done) / (1 - CONSTANT_SHARE)
    return LEARNING_RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * max(FINAL_SHARE, decay)


def read_history(folder: Path) -> list[dict[str, float]]:
    """Returns the figures logged up to the checkpoint in a folder."""
    with safe_open(folder / CHECKPOINT, framework="pt") as opened:
        history: list[dict[str, float]] = json.loads(opened.metadata()["history"])
    return history


class Run:
    """A pre-training run with its checkpoint.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        step: Steps done.
        history: Logged figures.
    """

    def __init__(self, base: str, out: Path) -> None:
        """Starts a run from fresh weights.

        Args:
            base: `old`, `next` or `later`.
            out: Folder of the checkpoint.
        """
        torch.manual_seed(SEEDS[base])
        self.base, self.out = base, out
        self.tokenizer = build_tokenizer(base)
        self.model = build_model(base)
        self.optimizers = make_optimizers(self.model)
        self.step = 0
        self.history: list[dict[str, float]] = []

    @property
    def checkpoint(self) -> Path:
        """Returns the path of the checkpoint."""
        return self.out / CHECKPOINT

    def save(self) -> None:
        """Writes the checkpoint, replacing the last one at once."""
        self.out.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        for number, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    tensors[f"optimizer.{number}.{index}.{key}"] = value
        part = self.checkpoint.with_suffix(".part")
        save_file(tensors, part, metadata={"history": json.dumps(self.history)})
        os.replace(part, self.checkpoint)

    def restore(self) -> None:
        """Goes back to the last checkpoint."""
        tensors = load_file(self.checkpoint)
        with torch.no_grad():
            for name, param in self.model.named_parameters():
                param.copy_(tensors[f"model.{name}"])
        for number, optimizer in enumerate(self.optimizers):
            saved = optimizer.state_dict()
            for name, value in tensors.items():
                kind, which, *rest = name.split(".")
                if kind == "optimizer" and int(which) == number:
                    saved["state"].setdefault(int(rest[0]), {})[rest[1]] = value
            optimizer.load_state_dict(saved)
        self.history = read_history(self.out)
        self.step = int(self.history[-1]["step"])

    def train_step(self, steps: int) -> tuple[float, float]:
        """Makes one step and returns the weighted loss and the loss on answers."""
        rate = learning_rate(self.step, steps)
        ids, weights = make_batch(self.tokenizer, SEEDS[self.base], self.step)
        logits = self.model(input_ids=ids[:, :-1]).logits
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        flat = weights[:, 1:].flatten()
        loss = (losses * flat).sum() / flat.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item(), losses.detach()[flat == ANSWER_WEIGHT].mean().item()

    def train(self, steps: int, stop_after: int | None = None) -> None:
        """Trains on the schedule of `steps` steps, to its end or until `stop_after` are done."""
        self.model.train()
        self.model.config.use_cache = False
        started, begun_at = time.monotonic(), self.step
        sums = [0.0, 0.0]
        while self.step < min(steps, stop_after or steps):
            sums = [total + x for total, x in zip(sums, self.train_step(steps), strict=True)]
            if self.step % LOG_EVERY == 0:
                tokens = self.step * STEP_TOKENS
                loss, answer_loss = (total / LOG_EVERY for total in sums)
                sums = [0.0, 0.0]
                self.history.append(
                    {"step": self.step, "tokens": tokens, "loss": loss, "answers": answer_loss}
                )
                speed = (self.step - begun_at) * STEP_TOKENS / (time.monotonic() - started)
                print(
                    f"step {self.step} tokens {tokens / 1e6:.2f}M loss {loss:.3f} "
                    f"answers {answer_loss:.3f} {speed:.0f} tokens/s",
                    flush=True,
                )
            if self.step % SAVE_EVERY == 0:
                self.save()
        self.save()


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", choices=BASE_NAMES, required=True)
    parser.add_argument("--steps", type=int, required=True, help="in all; fixes the schedule")
    parser.add_argument("--stop-after", type=int, help="end here, within the schedule")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint, if any")
    parser.add_argument("--export", action="store_true", help="only publish the checkpoint")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = Run(args.base, args.out)
    if (args.resume or args.export) and run.checkpoint.exists():
        run.restore()
    if not args.export:
        run.train(args.steps, args.stop_after)
    export(run.model, run.tokenizer, base_dir(args.base))


if __name__ == "__main__":
    main()
