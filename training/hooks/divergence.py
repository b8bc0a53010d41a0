"""Tells of steps that were skipped for gradients that are not finite, and ends a run of such steps.

A skipped step changes no weight, so a run that goes on skipping burns time and learns nothing.
"""

from training.console import say
from training.trainer import Hook, StepInfo


class DivergenceHook(Hook):
    """Warns of the first skip in a row and stops after too many, on every rank at the same step."""

    def __init__(self, *, max_skips_in_a_row: int) -> None:
        self.max_skips_in_a_row = max_skips_in_a_row
        self.skips = 0

    def on_step(self, info: StepInfo) -> None:
        """Count a skip.

        Raises:
            ValueError: `max_skips_in_a_row` steps were skipped one after another.
        """
        # Above a loss scale of 1, fp16 skips by design, until the scale is low enough.
        if not info.result.skipped or info.result.loss_scale > 1:
            self.skips = 0
            return
        self.skips += 1
        step = info.state.step
        if self.skips == 1:
            say(f"warning: step {step} is skipped: its gradient norm is not finite")
        if self.skips == self.max_skips_in_a_row:
            raise ValueError(
                f"steps {step - self.skips + 1} to {step} were skipped: their gradient norms are "
                "not finite, and no weight changed; lower optimizer.peak_learning_rate, look at "
                "the data, or continue from an earlier checkpoint "
                f"(engine.max_skips_in_a_row={self.max_skips_in_a_row})"
            )
