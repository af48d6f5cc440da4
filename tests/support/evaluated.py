"""What an evaluation on this machine always tells, whatever its type allows."""

from adapterhub.evaluate import EvalRow


def loss_of(row: EvalRow) -> float:
    """Nats a token."""
    assert row.loss is not None
    return row.loss


def perplexity_of(row: EvalRow) -> float:
    """exp of that."""
    assert row.perplexity is not None
    return row.perplexity
