"""Where results are published: a page for each machine, made of one skeleton, and the places of other pages."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
SKELETON = Path(__file__).with_name("machine_page.md")
PERFORMANCE, MACHINES = DOCS / "performance.md", DOCS / "performance"
MISSING = "Not measured on this machine."
PLACE = re.compile(r"(<!-- ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def machine_name(about: dict[str, str]) -> str:
    """What a machine's folder is called: its processor and the ISA that ran, as ``amd-epyc-zen-4-avx512``."""
    processor = about["machine"].split(",")[0].lower()
    return "-".join(re.findall(r"[a-z0-9]+", f"{processor} {about['ISA']}"))


def machine_page(about: dict[str, str]) -> Path:
    return MACHINES / machine_name(about) / "README.md"


def write_machine(page: Path, found: dict[str, str]) -> None:
    """The skeleton with these blocks; those that were not measured this time are kept as they are on the page."""
    text = SKELETON.read_text("utf-8").replace("MACHINE", page.parent.name)
    kept = blocks_of(page.read_text("utf-8")) if page.exists() else {}
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(filled(text, dict.fromkeys(places(text), MISSING) | kept | found, page), "utf-8")


def write_page(page: Path, found: dict[str, str]) -> None:
    """Replace what stands between the markers of the page; blocks that were not measured stay."""
    page.write_text(filled(page.read_text("utf-8"), found, page), "utf-8")


def blocks_of(text: str) -> dict[str, str]:
    """Block name -> what stands between its markers."""
    return {name: body.removesuffix("\n") for _, name, body, _ in PLACE.findall(text) if body}


def places(text: str) -> list[str]:
    return [name for _, name, _, _ in PLACE.findall(text)]


def filled(text: str, found: dict[str, str], page: Path) -> str:
    for name in found:
        if (count := places(text).count(name)) != 1:
            raise SystemExit(f"{page}: expected one place for {name!r}, found {count}")
    return PLACE.sub(lambda m: m[1] + found[m[2]] + "\n" + m[4] if m[2] in found else m[0], text)
