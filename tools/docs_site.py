"""Hook of mkdocs: pages that lie outside docs/, and the files that pages point to.

README.md is the first page of the site, and files of the repository that a page links to become
pages with their text, so that no link of the site needs a forge.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# of the repository: of the site
PAGES = {
    "README.md": "index.md",
    "datasets/README.md": "DATASETS.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CODE_OF_CONDUCT.md": "CODE_OF_CONDUCT.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "RELEASING.md": "RELEASING.md",
    "SECURITY.md": "SECURITY.md",
}
_SOURCES = {site: source for source, site in PAGES.items()}
_LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")
# what the theme's offline mode would load from another host: ours does the same
_REMOTE_WORKER = '<script src="https://unpkg.com/iframe-worker/shim"></script>'
_LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/, and one for each file or folder that a page links to."""
    for source, site in PAGES.items():
        files.append(File.generated(config, site, content=_read(source)))
    wanted = [_target(page.src_uri, link) for page in files.documentation_pages()
              for _, link, _ in _LINK.findall(page.content_string)]  # fmt: skip
    seen: set[str] = set()
    while wanted:
        path = wanted.pop()
        if path is None or path in seen or _page_of(path) is not None:
            continue
        seen.add(path)
        if (ROOT / path).is_dir():
            inside = sorted(p for p in (ROOT / path).iterdir() if _shown(p))
            wanted.extend(p.relative_to(ROOT).as_posix() for p in inside)
            content = "\n".join(f"- [{p.name}]({p.name})" for p in inside)
        elif (ROOT / path).is_file():
            content = _listing(path)
        else:
            continue  # mkdocs names links that lead nowhere
        head = f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n"
        files.append(File.generated(config, f"files/{path}.md", content=head + content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links of the repository into links of the site."""
    here = page.file.src_uri

    def turned(match: re.Match[str]) -> str:
        path = _target(here, match[2])
        site = None if path is None else _page_of(path) or f"files/{path}.md"
        if site is None or files.get_file_from_path(site) is None:
            return match[0]
        start = PurePosixPath(here).parent.as_posix()
        return f"{match[1]}{os.path.relpath(site, start)}{match[3]}"

    return _LINK.sub(turned, markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Have pages load nothing from other hosts."""
    return _local(output, os.path.relpath(".", PurePosixPath(page.url).parent.as_posix()))


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """The same for the page of a wrong address, which is no page to mkdocs."""
    return _local(output, ".") if template_name == "404.html" else output


def _local(html: str, root: str) -> str:
    if _REMOTE_WORKER not in html:
        raise PluginError("the theme has another script for searching off-line: see docs_site.py")
    return html.replace(_REMOTE_WORKER, f'<script src="{root}/assets/file-worker.js"></script>')


def _target(page: str, link: str) -> str | None:
    """What a link of a page of the site means, as a path in the repository."""
    listed = page.removeprefix("files/").removesuffix(".md")
    folder = (
        ROOT / listed
        if page.startswith("files/")
        else (ROOT / _SOURCES.get(page, f"docs/{page}")).parent
    )
    path = Path(os.path.normpath(folder / link))
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else None


def _page_of(path: str) -> str | None:
    """The page of the site, or picture, that a path of the repository is."""
    inside = PurePosixPath(path)
    if inside.parts[0] == "docs" and (ROOT / path).is_file():
        return inside.relative_to("docs").as_posix()
    return PAGES.get(path)


def _listing(path: str) -> str:
    fence = "`" * 4
    language = _LANGUAGES.get(Path(path).suffix, "text")
    return f"{fence}{language}\n{_read(path)}\n{fence}\n"


def _shown(path: Path) -> bool:
    if path.is_dir():
        return path.name != "__pycache__"
    return path.suffix in {*_LANGUAGES, ".md", ".txt"}


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")
