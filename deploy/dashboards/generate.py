"""Writes the chart's dashboards: `PYTHONPATH=. python -m deploy.dashboards.generate`; `--check` compares.

The JSON is what Grafana itself would export, with a data source that whoever looks chooses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from deploy.dashboards.boards import BOARDS, Board, Panel

FOLDER = Path(__file__).parents[2] / "helm" / "twolane" / "dashboards"
# Grafana's grid is 24 wide.
_WIDTH, _HEIGHT = 8, 8
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
Json = dict[str, Any]


def dashboard(board: Board) -> Json:
    """One dashboard as Grafana reads it."""
    return {
        "uid": f"twolane-{board.name}",
        "title": board.title,
        "tags": ["twolane"],
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [
            {
                "type": "dashboards",
                "tags": ["twolane"],
                "title": "twolane",
                "asDropdown": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": [_source_variable(), *(_variable(*item) for item in board.variables.items())]},
        "panels": _panels(board),
    }


def written(board: Board) -> str:
    """The text of its file."""
    return json.dumps(dashboard(board), indent=1, ensure_ascii=False) + "\n"


def _source_variable() -> Json:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _variable(name: str, query: str) -> Json:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "includeAll": True,
        "multi": True,
        "refresh": 2,
        "sort": 1,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _panels(board: Board) -> list[Json]:
    made: list[Json] = []
    y = 0
    for title, panels in board.rows.items():
        place = {"x": 0, "y": y, "w": 24, "h": 1}
        made.append(
            {"id": len(made) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": place}
        )
        y += 1
        for index, panel in enumerate(panels):
            across, down = index % (24 // _WIDTH), index // (24 // _WIDTH)
            place = {"x": across * _WIDTH, "y": y + down * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
            made.append(_graph(panel, len(made) + 1, place))
        y += -(-len(panels) // (24 // _WIDTH)) * _HEIGHT
    return made


def _graph(panel: Panel, number: int, place: Json) -> Json:
    custom: Json = {"fillOpacity": 25 if panel.stacked else 5, "showPoints": "never"}
    if panel.stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    defaults: Json = {"unit": panel.unit, "min": 0, "custom": custom}
    if panel.threshold is not None:
        custom["thresholdsStyle"] = {"mode": "line"}
        steps = [{"color": "green", "value": None}, {"color": "red", "value": panel.threshold}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend, "datasource": _SOURCE}
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def main(check: bool) -> int:
    """Writes every file, or says which differ; returns the exit status."""
    stale = []
    for board in BOARDS:
        path = FOLDER / f"{board.name}.json"
        if check and (not path.exists() or path.read_text(encoding="utf-8") != written(board)):
            stale.append(path.name)
        elif not check:
            path.write_text(written(board), encoding="utf-8")
    if stale:
        print(f"run deploy.dashboards.generate; these differ: {', '.join(stale)}", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
