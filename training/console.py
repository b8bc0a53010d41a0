"""What training tells its user: lines on stdout, by rank 0 alone."""

from training import distributed


def say(line: str) -> None:
    """Print a line at once, on rank 0."""
    if distributed.is_rank_zero():
        print(line, flush=True)
