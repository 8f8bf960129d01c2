"""The pages of the documentation: their headings, links and blocks of code."""

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted([*REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("examples/**/*.md"), *REPOSITORY.glob("*.md")])

_BLOCK = re.compile(r"^(`{3,})(\w*)(?: \{([^}\n]*)\})?\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A block of code; of ```` ```bash {.runnable} ```` the language is bash and the one class is runnable."""

    language: str
    classes: frozenset[str]
    text: str


def name_of(page: Path) -> str:
    """The page's path in the repository."""
    return str(page.relative_to(REPOSITORY))


def find_blocks(page: Path) -> list[Block]:
    """The page's blocks of code, in order."""
    return [
        Block(language, frozenset(re.findall(r"\.(\w+)", attributes)), text)
        for _, language, attributes, text in _BLOCK.findall(page.read_text())
    ]


def find_links(page: Path) -> list[str]:
    """Where the page's links lead, as they are written."""
    return _LINK.findall(re.sub(r"`[^`\n]*`", "", _BLOCK.sub("", page.read_text())))


def find_anchors(page: Path) -> set[str]:
    """The anchors of the page's headings, as GitHub and the site name them."""
    titles = re.findall(r"^#+ (.*)$", _BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
