"""Lets pages of the site link to files of the repository, as they do on the repository's web view.

A link such as ``../python/x.py`` leads out of the documentation. Where ``repo_url`` is set it
becomes a link into the repository; elsewhere the site gets a page with the text of that file.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

#: A Markdown link or image, up to the end of its target.
LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)\s]+)(?P<after>\))")
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".yml": "yaml", ".yaml": "yaml"}


def outside(page: str, target: str) -> str | None:
    """The path in the repository that a link leads to, ``None`` where it stays among the pages.

    Args:
        page: the page's path in the documentation.
        target: as written in the link.
    """
    parts = urlsplit(target)
    if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
        return None
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), parts.path))
    inside = path == "docs" or (path.startswith("docs/") and not path.endswith(".py"))
    return None if inside else path


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every file that is linked to."""
    if config.repo_url:
        return files
    root = Path(config.config_file_path).parent
    linked = set()
    for file in files.documentation_pages():
        for match in LINK.finditer(file.content_string):
            path = outside(file.src_uri, match["target"])
            if path is not None:
                linked.add(path)
    for path in sorted(linked):
        files.append(File.generated(config, f"source/{path}.md", content=_text(root, path)))
    return files


def _text(root: Path, path: str) -> str:
    file = root / path
    front = f"---\nsearch: {{exclude: true}}\nhide: [toc]\ntitle: {file.name}\n---\n\n# {path}\n\n"
    if file.is_dir():
        names = sorted(f"- `{child.name}`" for child in file.iterdir() if child.name[0] not in "._")
        return front + "\n".join(names) + "\n"
    if not file.is_file():
        raise PluginError(f"a page links to {path}, which is not in the repository")
    fence = "`" * 6
    language = LANGUAGES.get(file.suffix, "text")
    return f"{front}{fence}{language}\n{file.read_text(encoding='utf-8')}{fence}\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point the links that lead out of the documentation to where those files are shown."""

    def replaced(match: re.Match[str]) -> str:
        path = outside(page.file.src_uri, match["target"])
        if path is None or page.file.src_uri.startswith("source/"):
            return match[0]
        if config.repo_url:
            target = posixpath.join(config.repo_url, "blob/HEAD", path)
        else:
            target = posixpath.relpath(f"source/{path}.md", posixpath.dirname(page.file.src_uri))
        return f"{match['before']}{target}{match['after']}"

    return LINK.sub(replaced, markdown)
