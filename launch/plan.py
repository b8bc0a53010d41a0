"""What a launcher makes of a run: files, and the command that starts it."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Rendered: what `--submit` writes and runs, and what is shown without it."""

    command: tuple[str, ...]
    """What is run, on this machine."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Written before: path and content."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Of the command, over that of this process."""
    folder: str = ""
    """Where the command starts; empty: here."""

    def show(self) -> str:
        """Files and command as one would type them."""
        parts = [f"# {path}\n{text.rstrip()}\n" for path, text in self.files.items()]
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        there = [f"$ cd {shlex.quote(self.folder)}"] if self.folder else []
        line = f"$ {' '.join([*settings, shlex.join(self.command)])}\n"
        return "\n".join([*parts, *there, line])

    def write(self) -> None:
        """The files alone."""
        for path, text in self.files.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text)

    def submit(self) -> None:
        """Write the files and become the command: signals and the exit code are its own.

        Raises:
            FileNotFoundError: the command is not installed here.
        """
        self.write()
        os.chdir(self.folder or ".")
        try:
            os.execvpe(self.command[0], self.command, {**os.environ, **self.env})  # noqa: S606
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self.command[0]}: no such program on this machine; submit where it is installed"
            ) from None
