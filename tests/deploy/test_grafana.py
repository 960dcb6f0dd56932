"""Grafana's dashboards: made from their description, whole, and about metrics that there are."""

from __future__ import annotations

import json
import re
from itertools import combinations

import pytest
import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard

from penstock.deploy.catalogue import exported
from penstock.services.metrics import to_prometheus
from penstock.services.prometheus import SCRAPED
from scripts.grafana.__main__ import FOLDER, files
from scripts.grafana.describe import metric, of, rate

BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
PROVISIONING = FOLDER.parent / "provisioning"


def panels(board) -> list:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


@pytest.fixture(params=BOARDS)
def board(request):
    return BOARDS[request.param]


def test_the_files_are_what_the_description_makes() -> None:
    made = files()
    assert set(made) == set(FOLDER.iterdir())
    for path, text in made.items():
        assert path.read_text() == text, "make it anew: make grafana"


def test_grafanas_own_library_reads_them(board) -> None:
    assert Dashboard.from_json(board).uid == board["uid"]


def test_every_panel_says_what_it_shows_and_in_which_unit(board) -> None:
    for panel in panels(board):
        assert re.search(r"`[a-z_]+/", panel["description"]), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(target["legendFormat"].startswith("{{run}}") for target in panel["targets"])


def test_lines_have_a_legend_tables_are_one_table_and_counts_have_no_fraction(board) -> None:
    """What Grafana's library leaves out where nobody asks for it."""
    for panel in panels(board):
        (target, *_), options = panel["targets"], panel["options"]
        if panel["type"] == "timeseries":
            assert options["legend"]["showLegend"], panel["title"]
        if panel["type"] == "table":
            assert (target["format"], target["instant"]) == ("table", True)
        if panel["type"] == "stat":
            assert options["reduceOptions"]["calcs"] == ["lastNotNull"]
        if "increase(" in target["expr"]:
            assert panel["fieldConfig"]["defaults"]["decimals"] == 0, panel["title"]


def test_queries_ask_for_exported_metrics_of_the_chosen_runs(board) -> None:
    known = {SCRAPED + to_prometheus(name) for name in exported()}
    for panel in panels(board):
        for target in panel["targets"]:
            asked = re.findall(r"(ray_penstock_\w+)\{([^}]*)\}", target["expr"])
            assert asked, target["expr"]
            for name, labels in asked:
                assert name in known
                assert 'run=~"$run"' in labels


def test_panels_do_not_lie_on_each_other_and_have_numbers_of_their_own(board) -> None:
    cells = [
        {(x, y) for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])}
        for p in (panel["gridPos"] for panel in board["panels"])
    ]
    assert all(not (one & other) for one, other in combinations(cells, 2))
    assert all(x < 24 for cell in cells for x, _ in cell)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


def test_datasource_and_runs_are_variables_that_links_between_dashboards_carry_along(board) -> None:
    source, run = board["templating"]["list"]
    assert (source["type"], source["name"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert (run["name"], run["multi"], run["includeAll"]) == ("run", True, True)
    (link,) = board["links"]
    assert link["includeVars"]
    assert link["keepTime"]
    assert all(set(link["tags"]) <= set(other["tags"]) for other in BOARDS.values())
    assert "datasource" not in json.dumps(board["panels"]).replace("${datasource}", "").replace('"datasource":', "")


def test_provisioning_names_a_source_of_that_kind() -> None:
    sources = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert [source["type"] for source in sources] == ["prometheus"]
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "penstock.yml").read_text())["providers"]
    assert provider["type"] == "file"


def test_a_description_of_an_unknown_metric_is_refused() -> None:
    with pytest.raises(KeyError, match="kl/referense is no metric"):
        metric("kl/referense")


def test_queries_by_hand() -> None:
    assert of("kl/reference").expr == 'max by (run) (ray_penstock_kl_reference{run=~"$run"})'
    by_state = of("ledger/{state}", "ledger")
    assert by_state.expr == 'max by (run, state) (ray_penstock_ledger_by_state{run=~"$run"})'
    assert by_state.legend == "{{run}} ledger {{state}}"
    assert of("ledger/{state}", state="~stored|taken").expr.endswith('{run=~"$run", state=~"stored|taken"})')
    assert rate("scorer/groups", by="worker", role="scorer").expr == (
        'sum by (run, worker) (rate(ray_penstock_scorer_groups{run=~"$run", role="scorer"}[$__rate_interval]))'
    )
