"""Hooks of mkdocs: pages that lie outside docs/, links to files of the repository, and the API reference.

Pages are written so that their links work in a checkout and on a code host. For the site, a link that leaves docs/
leads to the same page of the site where there is one, or else to a copy of the file.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts.architecture import first_line, rooms
from scripts.house import ROOT, modules, public_names

OUTSIDE = {
    "data/README.md": "data.md",
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.md",
}
"""Pages of the repository, and where the site has them."""
LINK = re.compile(r"(\]\(|(?:src|href)=\")([^)\s#\"]+)(#[^)\s\"]*)?(?=[)\"])")


def definition(module: str, name: str) -> str:
    """Returns the full name of an object where it is defined, following imports and aliases in packages."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and any((one.asname or one.name) == name for one in node.names):
            return definition(str(node.module).removeprefix("gpt4roi."), name)
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return definition(module, getattr(node.value, "id", ""))
    return f"gpt4roi.{module}.{name}"


def reference_pages() -> dict[str, str]:
    """Returns the pages of the API reference, address to Markdown: the public names, and one page a room."""
    public = {name: definition(module, name) for name, module in public_names().items()}
    rows = "\n".join(f"| `{name}` | [`{full}`][{full}] |" for name, full in public.items())
    head = "# Public API\n\nAll of these import from `gpt4roi`, and stay.\n\n| name | defined as |\n|---|---|\n"
    pages = {"reference/index.md": f"{head}{rows}\n"}
    files = modules()
    loose = [room for room in rooms() if files[room].name != "__init__.py" and room != "app"]
    body = "\n\n".join(f"::: gpt4roi.{name}\n    options: {{heading_level: 2}}" for name in loose)
    pages["reference/gpt4roi.md"] = f"# gpt4roi\n\n{body}\n"
    for room, names in rooms().items():
        if room in loose or room == "app":
            continue
        inner = [name for name in names if name != room and files[name].name != "__init__.py"]
        body = "\n\n".join(f"::: gpt4roi.{name}\n    options: {{heading_level: 2}}" for name in inner)
        if body:
            pages[f"reference/{room}.md"] = f"# {room}\n\n{first_line(files[room])}\n\n{body}\n"
    return pages


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the API reference to the navigation."""
    config.nav.append({"API reference": list(reference_pages())})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie outside docs/, the API reference, and every file that a page links to."""
    for source, target in OUTSIDE.items():
        if target != "index.md":
            text = (ROOT / source).read_text(encoding="utf-8")
            files.append(File.generated(config, target, content=relinked(text, ROOT / source, target)))
    for address, text in reference_pages().items():
        files.append(File.generated(config, address, content=text))
    for path in linked_files():
        files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turns links that leave docs/ into links of the site."""
    if page.file.generated_by:
        return markdown
    return relinked(markdown, ROOT / "docs" / page.file.src_uri, page.file.src_uri)


def linked_files() -> list[Path]:
    """Returns the files outside docs/ that pages link to and that are no pages of the site."""
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / source for source in OUTSIDE if source != "README.md")]
    found = set()
    for page in pages:
        for _, link, _ in LINK.findall(page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            if "://" not in link and target.is_file() and not target.is_relative_to(ROOT / "docs"):
                found.add(target)
    return sorted(path for path in found if str(path.relative_to(ROOT)) not in OUTSIDE)


def relinked(text: str, source: Path, address: str) -> str:
    """Returns a page with its links as the site needs them.

    Args:
        text: The page's Markdown.
        source: The file that it comes from.
        address: Where the site has it, relative to its root.
    """
    up = "../" * address.count("/")

    def link_of(match: re.Match[str]) -> str:
        before, link, anchor = match.groups()
        target = (source.parent / link).resolve()
        if "://" in link or not target.is_relative_to(ROOT) or not target.exists():
            return match[0]
        inside = str(target.relative_to(ROOT))
        inside = OUTSIDE.get(inside, inside).removeprefix("docs/")
        if target.is_dir():
            return match[0]
        return f"{before}{up}{inside}{anchor or ''}"

    return LINK.sub(link_of, text)
