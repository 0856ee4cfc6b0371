"""How alike two models answer, token by token. Legend: B rows, T tokens, V vocabulary."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """Next-token distributions of two models on the same texts, beside the bare base's."""

    positions: int
    top_token_agreement: float
    """Share of positions with the same most likely token."""
    divergence: float
    """Mean KL(original || other), nats a token."""
    divergence_of_base: float
    """Mean KL(original || base): what the adapter does at all."""
    largest_logit_difference: float
    largest_logit_effect: float
    """Of the original against the base."""

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return asdict(self)


def probe_tokens(
    tokenizer: Any, texts: Sequence[str], *, rows: int = 8, length: int = 32
) -> list[torch.Tensor]:
    """Returns token ids [1, T] to probe with: the texts, and random tokens beside them.

    Random tokens reach what texts of one task leave out. They are the same for every call.
    """
    vocabulary = len(tokenizer)
    generator = torch.Generator().manual_seed(0)
    found = [torch.randint(vocabulary, (1, length), generator=generator) for _ in range(rows)]
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        if ids.shape[1]:
            found.append(ids)
    return found


def logits_of(model: Any, probes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Returns fp32 logits [T, V] of every probe, on the CPU."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        return [model(input_ids=ids.to(device)).logits[0].float().cpu() for ids in probes]


def likeness(
    original: Sequence[torch.Tensor], other: Sequence[torch.Tensor], base: Sequence[torch.Tensor]
) -> Likeness:
    """Compares logits of the same probes."""
    original_TV, other_TV, base_TV = (torch.cat(list(one)) for one in (original, other, base))
    return Likeness(
        positions=len(original_TV),
        top_token_agreement=float((original_TV.argmax(-1) == other_TV.argmax(-1)).float().mean()),
        divergence=_divergence(original_TV, other_TV),
        divergence_of_base=_divergence(original_TV, base_TV),
        largest_logit_difference=float((original_TV - other_TV).abs().max()),
        largest_logit_effect=float((original_TV - base_TV).abs().max()),
    )


def _divergence(p_TV: torch.Tensor, q_TV: torch.Tensor) -> float:
    p_TV, q_TV = p_TV.log_softmax(-1), q_TV.log_softmax(-1)
    # Rounding may leave it a hair below zero.
    return max(0.0, float((p_TV.exp() * (p_TV - q_TV)).sum(-1).mean()))
