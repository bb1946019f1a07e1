"""The hook of mkdocs: adds pages generated at build time, and makes links to files of the repository work on the site.

Pages are written for GitHub, with paths relative to the file. A link to a file that is a page of the site leads there;
any other file of the repository is linked at its address on GitHub. A link to a file that does not exist fails the build.
"""

import posixpath
import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from mkdocs.config.defaults import MkDocsConfig  # noqa: E402 - the path above comes first
from mkdocs.exceptions import PluginError  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402
from mkdocs.structure.pages import Page  # noqa: E402

from lab.site import pages  # noqa: E402

ADDRESS = "https://github.com/finetune-operator/finetune-operator/blob/main/"
LINK = re.compile(r"(?P<text>\]\()(?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)")
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List each decision in the navigation."""
    decisions = sorted((REPOSITORY / "docs" / "decisions").glob("[0-9]*.md"))
    entry = next(part for part in config.nav or [] if "Decisions" in part)
    entry["Decisions"] = ["explanation/decisions.md", *(f"decisions/{path.name}" for path in decisions)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for page in pages.generated():
        known = files.get_file_from_path(page.path)
        if known is not None:
            files.remove(known)
        files.append(File.generated(config, page.path, content=page.text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page's text with links that work on the site."""
    here = page.file.src_uri
    source = pages.ORIGINS.get(here, f"docs/{here}")
    pieces = CODE.split(markdown)
    # Every second piece is code, which stays as it is.
    pieces[::2] = [LINK.sub(lambda match: _link(match, source, here), piece) for piece in pieces[::2]]
    return "".join(pieces)


def _link(match: re.Match[str], source: str, here: str) -> str:
    target, anchor = match["target"], match["anchor"] or ""
    if not target or "://" in target or target.startswith("mailto:"):
        return match[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    site = pages.SITE_PATHS.get(path)
    if site is None and path.startswith("docs/") and path.endswith(".md"):
        site = path.removeprefix("docs/")
    if site is not None:
        return f"]({posixpath.relpath(site, posixpath.dirname(here) or '.')}{anchor})"
    if not (REPOSITORY / path).exists():
        raise PluginError(f"{source} links to {target}, and there is no {path}")
    return f"]({ADDRESS}{path}{anchor})"
