"""Write deploy/grafana/dashboards: `python -m scripts.grafana` in the repository's folder, or `make grafana`."""

from __future__ import annotations

from pathlib import Path

from scripts.grafana.boards import BOARDS
from scripts.grafana.render import render

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards"


def files() -> dict[Path, str]:
    """What should stand in each file."""
    return {FOLDER / f"{board.uid.removeprefix('penstock-')}.json": render(board) for board in BOARDS}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
        print(f"[grafana] {path}")
