"""Pages that lie beside docs/: links to them are checked and lead somewhere. A hook of mkdocs."""

from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent


def on_files(files, config):
    """Adds the changelog, and the tables and pictures of the benchmarks."""
    results = (ROOT / "benchmarks/results").rglob("*")
    for path in [ROOT / "CHANGELOG.md", *sorted(p for p in results if p.suffix in (".md", ".png"))]:
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))


def on_page_markdown(markdown, page, config, files):
    """In a repository they are reached by leaving docs/, in the site they are not."""
    if page.file.src_uri.startswith(("CHANGELOG", "benchmarks")):
        page.meta["search"] = {"boost": 0.1}  # found behind the pages that explain them
    return markdown.replace("](../", "](")
