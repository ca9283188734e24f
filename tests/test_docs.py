"""The documents say what the program does."""

import re
from pathlib import Path

from distillzoo.core import API_VERSION
from distillzoo.core.registry import HOOKS
from tests.plugin_api import checks, surface

ROOT = Path(__file__).parent.parent
API = (ROOT / "docs" / "plugin-api.md").read_text()


def test_the_page_holds_the_whole_surface():
    assert surface() in API, "run python -m tests.plugin_api; a changed surface needs another API_VERSION"
    assert f"Version {API_VERSION}." in API
    assert all(f"`{hook}`" in API for hook in HOOKS.values())


def test_the_page_holds_every_check():
    assert API.endswith(checks()), "run python -m tests.plugin_api"


def test_links_between_documents_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page}: {target}"
