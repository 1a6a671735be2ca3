"""The address of the project, and what follows from it: the install command and the links.

Every text that names the address of the project, or a command that installs it, gets it from here. This
module imports nothing of tomecore, so any other module may import it.
"""

from __future__ import annotations

__all__ = ["PUBLISHED", "REPOSITORY", "file_url", "install_command", "install_hint", "page", "urls"]

#: The address of the repository, such as "https://github.com/OWNER/tomecore"; None if it is not public.
REPOSITORY: str | None = None

#: Whether ``pip install tomecore`` finds the package; only after the first upload (RELEASING.md).
PUBLISHED = False


def install_command(*extras: str) -> str:
    """Return the command that installs tomecore with ``extras``, such as ``pip install ".[torch]"``."""
    listed = f"[{','.join(extras)}]" if extras else ""
    if PUBLISHED:
        what = f"tomecore{listed}"
    elif REPOSITORY is not None:
        what = f"tomecore{listed} @ git+{REPOSITORY}"
    else:
        what = f".{listed}"
    return f'pip install "{what}"'


def install_hint(*extras: str) -> str:
    """Return :func:`install_command` for a message; it says where to run the command, if that matters."""
    command = install_command(*extras)
    return command if PUBLISHED or REPOSITORY is not None else f"{command} (in a clone of tomecore)"


def file_url(path: str, ref: str = "main", *, raw: bool = False) -> str | None:
    """Return the address of a file of the repository, or None without :data:`REPOSITORY`.

    Args:
        path: from the root of the repository, for example ``"docs/index.md"``.
        ref: a branch or a tag.
        raw: the file itself, such as an image, and not the page that shows it.
    """
    if REPOSITORY is None:
        return None
    return f"{REPOSITORY}/{'raw' if raw else 'blob'}/{ref}/{path}"


def page(path: str) -> str:
    """Return the address of a page for a message, or its path in a clone if there is no address."""
    return file_url(path) or path


def urls() -> dict[str, str]:
    """Return what ``[project.urls]`` of pyproject.toml must be; empty without :data:`REPOSITORY`."""
    if REPOSITORY is None:
        return {}
    return {
        "Repository": REPOSITORY,
        "Documentation": f"{REPOSITORY}/blob/main/docs/index.md",
        "Changelog": f"{REPOSITORY}/blob/main/CHANGELOG.md",
        "Issues": f"{REPOSITORY}/issues",
    }
