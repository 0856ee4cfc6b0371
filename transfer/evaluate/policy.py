"""What a promotion takes, as data."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePolicy:
    """What a promotion takes.

    A shadow that is truly worse by the margin or more is promoted with probability at most
    (1 - confidence) / 2 over all attempts of its migration: 2 % by default. A tenant's own verdict
    (command.py) is another look, with a risk of its own on top of that.
    """

    margin: float = 0.05
    """Largest tolerated loss of accuracy on true answers (0 to 1)."""
    label_free_margin: float = 0.05
    """Largest tolerated disagreement with the source where true answers are unknown. Accuracy
    can't fall by more than the share of answers that changed, so the margin itself is the only
    bound that holds whatever the changes are, provided that answers to real inputs change no more
    often than to the synthetic ones seen here. Where they change k times as often, only the margin
    divided by k holds. How far a wider one can be trusted is what benchmarks/suites/gate.py
    measures."""
    confidence: float = 0.96
    """Of the two-sided interval of the difference, all attempts of a migration together."""
    attempts: int = 1
    """Attempts that a migration may make. Each is another chance to be promoted by luck, so each
    gets an equal part of the risk."""
    negative_flip_budget: float = 0.05
    """Largest share of inputs that the source had right and the shadow has wrong, as seen (its
    upper bound is reported). What the sample may hide is bounded by the margin already; bounding
    it here again would refuse equal adapters, because a retraining that changes nothing on
    average still flips 1 to 5 %. Without true answers the label-free margin takes its place."""
    min_examples: int = 100
    """Fewer inputs decide nothing."""
    hopeless_loss: float = 0.60
    """A shadow that is surely worse by this is rejected at once, to save background time. Smaller
    gaps are worth another attempt: twice the data and steps has closed one of 0.31."""

    def __post_init__(self) -> None:
        """Checks the bounds."""
        for name in ("margin", "label_free_margin", "hopeless_loss"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"got {name}={getattr(self, name)}, expected between 0 and 1")
        if not 0.5 < self.confidence < 1 or not 0 <= self.negative_flip_budget < 1:
            raise ValueError(
                f"got confidence {self.confidence} and flip budget {self.negative_flip_budget}, "
                "expected 0.5 < confidence < 1 and 0 <= budget < 1"
            )
        if self.min_examples < 1 or self.attempts < 1:
            raise ValueError(
                f"got min_examples={self.min_examples} and attempts={self.attempts}, expected at "
                "least 1 of each"
            )

    @property
    def alpha(self) -> float:
        """One-sided level of one decision."""
        return (1.0 - self.confidence) / 2.0 / self.attempts

    @property
    def interval_confidence(self) -> float:
        """Of the two-sided intervals of one decision."""
        return 1.0 - 2.0 * self.alpha

    def margin_for(self, label_free: bool) -> float:
        """Returns the margin that this kind of evidence is held to."""
        return self.label_free_margin if label_free else self.margin

    def flip_budget_for(self, label_free: bool) -> float:
        """Returns the flip budget that this kind of evidence is held to."""
        return self.label_free_margin if label_free else self.negative_flip_budget
