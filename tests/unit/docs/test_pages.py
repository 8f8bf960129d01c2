"""What the site's own build does not see: links on GitHub's pages, and pages that the navigation forgot."""

import re
from pathlib import Path

import pytest
import yaml
from pierhead_operator import names

from tests.documents import PAGES, REPOSITORY, find_anchors, find_blocks, find_links, name_of

DOCS = REPOSITORY / "docs"
# The last ones are those of tests/cluster/test_bare.py, and that of tests/unit/cluster/test_kind.py.
CLASSES = {"runnable", "output", "fragment", "values"} | {
    "kind",
    "helm",
    "kubectl",
    "predict",
    "nodeport",
    "loadbalancer",
    "another",
}
SUPPORT = DOCS / "install" / "support.md"
INSTALLS = sorted(page for page in (DOCS / "install").iterdir() if page != SUPPORT)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in find_links(page):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in find_anchors(target), link


@pytest.mark.parametrize("page", [page for page in PAGES if page.is_relative_to(DOCS)], ids=name_of)
def test_pages_of_the_site_link_to_pages_of_the_site(page):
    inside = [link.partition("#")[0] for link in find_links(page) if not link.startswith(("http://", "https://"))]
    for path in filter(None, inside):
        target = (page.parent / path).resolve()
        assert (target.suffix, target.is_relative_to(DOCS)) == (".md", True), path


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_classes_of_blocks_are_known(page):
    """A misspelt one would not be run, and nobody would be told."""
    for block in find_blocks(page):
        assert block.classes <= CLASSES, block.text


@pytest.mark.parametrize("page", sorted(DOCS.glob("coming-from/*.md")), ids=name_of)
def test_addresses_of_pods_are_those_that_pods_answer_at(page):
    """The table of routes in model-server.md is compared with the server's own."""
    routes = re.findall(r"^\| `(?:GET|POST) (/[^`]*)` \|", (DOCS / "model-server.md").read_text(), re.MULTILINE)
    patterns = [re.sub(r"\\{\w+\\}", r"[\\w-]+", re.escape(route)) for route in routes]
    for service, path in re.findall(r"http://([\w-]+)\.NAMESPACE\.svc(/[^`]*)`", page.read_text()):
        assert service.startswith(names.server(""))
        assert any(re.fullmatch(pattern, path) for pattern in patterns), path


NAMING = sorted(
    path
    for folder in ("bench", "charts", "cluster", "config", "docs", "examples")
    for path in (REPOSITORY / folder).rglob("*")
    if path.suffix in (".md", ".py", ".tpl", ".txt", ".yaml")
)


def test_no_image_is_named_without_its_registry():
    """A name without one is of a public hub, where nobody owns it."""
    bare = re.compile(r"(?<![\w./-])pierhead/(?:operator|server)\b(?!:0\.1\.0)")  # those of 0.1.0 are told of
    assert len(NAMING) > 100
    assert not [(name_of(path), found[0]) for path in NAMING if (found := bare.findall(path.read_text()))]


@pytest.mark.parametrize("page", INSTALLS, ids=name_of)
def test_install_page_begins_with_what_to_do(page):
    """What is tested of it is told in one place."""
    assert re.match(r"# .+\n\n(## .+\n\n)?```", page.read_text())
    assert not re.search(r"\b(not (been )?(run|tried|tested)|no test runs)\b", page.read_text(), re.IGNORECASE)


def test_support_names_every_install_page_and_tests_that_there_are():
    text = SUPPORT.read_text()
    assert {link.partition("#")[0] for link in find_links(SUPPORT)} >= {page.name for page in INSTALLS}
    named = re.findall(r"`(tests/[^`]+)`", text)
    assert named
    assert not [name for name in named if not (REPOSITORY / name).is_file()]


def _paths(nav):
    for entry in nav:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from _paths(value) if isinstance(value, list) else [value]


def test_navigation_leads_to_every_page():
    site = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
    assert sorted(_paths(site["nav"])) == sorted(str(page.relative_to(DOCS)) for page in Path(DOCS).glob("**/*.md"))
