"""Put the photographs into storage, and a list of them as a batch prediction reads it.

    python examples/photos/put_photographs.py --output build/photographs --upload gs://photographs

`photographs.jsonl` is the list: one instance a line, with the URI of its picture.
"""

import argparse
import json
from pathlib import Path

from photographs import photographs
from storage import upload


def write(folder: Path, destination: str) -> None:
    """The photographs, and the list of what they will be under `destination`, as files of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, content, mime_type in photographs():
        (folder / name).write_bytes(content)
        lines.append(json.dumps({"content": f"{destination}/{name}", "mimeType": mime_type}))
    (folder / "photographs.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder to write them into")
    parser.add_argument("--upload", metavar="gs://BUCKET/PREFIX", required=True, help="where to put them then")
    arguments = parser.parse_args()
    destination = arguments.upload.rstrip("/")
    write(arguments.output, destination)
    upload(arguments.output, destination)


if __name__ == "__main__":
    main()
