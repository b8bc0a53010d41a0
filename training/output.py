"""Where a command writes what it finds: at the place of `--out`, or at a default in this folder.

Nothing is replaced that the user has not named.
"""

from pathlib import Path


def choose_output(named: str | None, default: str) -> Path:
    """The place that `--out` names, else the default, which must be free.

    Raises:
        FileExistsError: something lies at the default.
    """
    if named is not None:
        return Path(named)
    out = Path(default)
    if out.exists():
        raise FileExistsError(f"{out}: is there already; --out names another place, or this one")
    return out
