"""A hook of mkdocs: pages link to files of the repository, which the site does not have."""

import posixpath
import re

_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)]*)\)")


def on_page_markdown(markdown: str, page, **_) -> str:
    """Leave the words of links that lead out of docs/."""
    folder = posixpath.dirname(page.file.src_uri)

    def inside(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        return link[1] if target.startswith("..") else link[0]

    return _LINK.sub(inside, markdown)
