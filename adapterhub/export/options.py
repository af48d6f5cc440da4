"""What may be asked of an export, and what contradicts what."""

from __future__ import annotations

from adapterhub.errors import UsageError

CALIBRATED = ("gptq", "awq")
"""Ways to quantise that look at rows."""
QUANTISED = ("nf4", *CALIBRATED)
VIEWS = ("original", "trained", "nf4", "fp4", "nf4-single", "fp4-single")
"""As what the weights of a base may be seen."""


def check_options(
    quantize: str | None, *, calibrated: bool, resume: bool, everything: bool
) -> None:
    """UsageError for options that can't be had together.

    Args:
        calibrated: rows were given.
        everything: `--verify-all` was.
    """
    if quantize is not None and quantize not in QUANTISED:
        raise UsageError(
            f"'{quantize}' is no way to quantise.", hint="Use --quantize nf4, gptq or awq."
        )
    if everything and quantize == "nf4":
        raise UsageError(
            "--verify-all can't be had with --quantize nf4.",
            why="What is rounded to 4 bits isn't compared with a second computation.",
            hint="Verify the unquantised export, or leave --verify-all out.",
        )
    if quantize not in CALIBRATED:
        if calibrated:
            raise UsageError(
                "--calibration is for --quantize gptq and awq.",
                why="Nothing else looks at rows.",
                hint="Leave it out.",
            )
        return
    if not calibrated:
        raise UsageError(
            f"--quantize {quantize} needs rows to calibrate with.",
            hint="Name a file of training data: --calibration rows.jsonl",
        )
    if resume:
        raise UsageError(
            f"--quantize {quantize} can't be resumed.",
            hint="Leave out --resume: it begins anew.",
        )
