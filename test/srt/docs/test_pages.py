"""What README and the documentation say of themselves: links, flags, hooks, the layout picture."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import sglang.srt.plugins.marconi as plugin
from markdown_it import MarkdownIt
from markdown_it.token import Token
from sglang.srt.mem_cache.marconi.config import FLAGS, MarconiFlag

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("benchmark", "docs", "patches", "python", "test")
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for name in FOLDERS for page in (ROOT / name).rglob("*.md"))]
)
MARKDOWN = MarkdownIt("commonmark").enable("table")


def tokens(page: Path) -> Iterator[Token]:
    for block in MARKDOWN.parse(page.read_text(encoding="utf-8")):
        yield block
        yield from block.children or ()


def links(page: Path) -> Iterator[str]:
    """Targets of all links and pictures of a page."""
    for token in tokens(page):
        target = token.attrGet("href") if token.type == "link_open" else token.attrGet("src")
        if target is not None and token.type in ("link_open", "image"):
            yield str(target)


def anchors(page: Path) -> set[str]:
    """Names of the headings, as the repository's web view and the site make them."""
    found: set[str] = set()
    blocks = MARKDOWN.parse(page.read_text(encoding="utf-8"))
    for before, block in pairwise(blocks):
        if before.type != "heading_open":
            continue
        text = "".join(c.content for c in block.children or () if c.type in ("text", "code_inline"))
        name = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
        while name in found:
            name += "-1"
        found.add(name)
    return found


def broken(page: Path, target: str) -> str | None:
    """What is wrong with a link of a page, ``None`` if it leads somewhere."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return None
    to = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not to.exists() or not to.is_relative_to(ROOT):
        return f"{target}: no such file"
    if parts.fragment and (to.suffix != ".md" or parts.fragment not in anchors(to)):
        return f"{target}: no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert [wrong for target in links(page) if (wrong := broken(page, target))] == []


#: A path of the repository in code letters, up to a placeholder or a name of something inside it.
CODE_PATH = re.compile(r"`((?:benchmark|docs|patches|python|test)/[\w./-]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_is_named_exists(page: Path) -> None:
    named = CODE_PATH.findall(page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_a_broken_link_is_found() -> None:
    page = ROOT / "README.md"
    assert broken(page, "docs/no-such-page.md") and broken(page, "docs/index.md#no-such-heading")
    assert broken(page, "#limits-that-decide-whether-it-is-for-you") is None


def test_every_runbook_of_an_alert_leads_somewhere() -> None:
    rules = (ROOT / "docs/monitoring/alerts.yml").read_text(encoding="utf-8")
    runbooks = re.findall(r"^\s*runbook: (\S+)$", rules, re.MULTILINE)
    assert runbooks and [r for r in runbooks if broken(ROOT / "README.md", r)] == []


# -- README


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = f"\n{text}".split(f"\n{heading}\n", 1)[1]
    lines = [line for line in section.split("\n## ", 1)[0].splitlines() if line.startswith("|")]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_readme_is_short() -> None:
    assert len(readme().splitlines()) <= 150


def test_readme_recommends_policy_3() -> None:
    assert "--marconi-evict-policy 3" in readme()
    assert "--marconi-evict-policy 2" not in readme(), "one answer to which flag to start with"


def values_of(flag: MarconiFlag) -> str:
    """How a table shows what a flag takes."""
    if flag.is_switch:
        return ""
    if flag.choices is not None:
        return ", ".join(f"`{choice}`" for choice in flag.choices)
    if flag.sequences:
        return "`IDS;IDS;…`"
    if flag.text:
        return "a file"
    number = f"{'whole ' if flag.whole else ''}number ≥ {flag.at_least:g}"
    return ", ".join([number, *(f"`{word}`" for word in flag.words)])


def default_of(flag: MarconiFlag) -> str:
    if flag.default is not None:
        shown = flag.default
        return f"`{shown:g}`" if isinstance(shown, float) else f"`{shown}`"
    if flag.is_switch:
        return "off"
    return "unset" if flag is FLAGS[0] else "none"


def test_readme_shows_every_flag_with_its_values_and_default() -> None:
    shown = [row[:3] for row in table(readme(), "## Flags")]
    assert shown == [[f"`{flag.flag}`", values_of(flag), default_of(flag)] for flag in FLAGS]


def test_every_flag_is_explained() -> None:
    page = (ROOT / "docs/operating/flags.md").read_text(encoding="utf-8")
    assert [flag.flag for flag in FLAGS if f"`{flag.flag}" not in page] == []


# -- architecture


def test_the_table_of_hooks_is_that_of_the_plugin() -> None:
    page = (ROOT / "docs/architecture/hooks.md").read_text(encoding="utf-8")
    shown = [row[:3] for row in table(page, "# Hooks into SGLang")]
    assert shown == [
        [
            f"`{hook.target}`",
            hook.kind.name.lower(),
            ", ".join(f"`{name}`" for name in hook.parameters),
        ]
        for hook in plugin.HOOKS
    ]


def test_the_layout_picture_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "docs/draw_layout.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
