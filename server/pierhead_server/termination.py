"""The last words of a process, where Kubernetes looks for them."""

import contextlib
from pathlib import Path

_MOST_CHARACTERS = 2000  # Kubernetes keeps 4096 bytes of a termination message


def tell(termination_log: Path, message: str) -> str:
    """Write the message, cut to what is kept, and give it back; for an empty one Kubernetes takes the log's end."""
    line = message[:_MOST_CHARACTERS]
    # Opened, never created: Kubernetes puts the file there, and elsewhere nobody would read it.
    with contextlib.suppress(OSError), termination_log.open("r+") as file:
        # Shortened afterwards: who is killed between the two leaves a whole line.
        file.write(f"{line}\n" if line else "")
        file.truncate()
    return line
