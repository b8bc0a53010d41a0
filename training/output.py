"""Where a command writes what it finds: at the place of `--out`, or at a default in this folder.

Nothing is replaced that the user has not named.
"""

from pathlib import Path


def choose_output(named: str | None, default: str, *, is_folder: bool = False) -> Path:
    """The place that `--out` names, else the default, which must be free; before any work is done.

    Raises:
        FileExistsError: something lies at the default, or a file where a folder is to be.
        IsADirectoryError: a folder lies where a file is to be.
    """
    if named is not None:
        out = Path(named)
        if out.is_dir() and not is_folder:
            raise IsADirectoryError(f"--out {out}: is a folder; name a file in it")
        if out.exists() and is_folder and not out.is_dir():
            raise FileExistsError(f"--out {out}: is a file; name a folder")
        return out
    out = Path(default)
    if out.exists():
        raise FileExistsError(f"{out}: is there already; --out names another place, or this one")
    return out
