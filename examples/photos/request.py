"""Prints a predict request for one of the photographs: `python examples/photos/request.py coffee.png`."""

import base64
import json
import sys

from photographs import photographs


def main(wanted: str) -> None:
    pictures = {name: (content, mime_type) for name, content, mime_type in photographs()}
    if wanted not in pictures:
        sys.exit(f"no photograph {wanted}; there are {', '.join(pictures)}")
    content, mime_type = pictures[wanted]
    instance = {"content": base64.b64encode(content).decode(), "mimeType": mime_type}
    json.dump({"instances": [instance], "parameters": {"maxPredictions": 3}}, sys.stdout)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["coffee.png"]))
