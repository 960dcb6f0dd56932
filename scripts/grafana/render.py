"""Dashboards as Grafana reads them, made by Grafana's own library."""

from __future__ import annotations

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from scripts.grafana.describe import Board, Panel, Query, metric, selected

_HEIGHT = {"stat": 4, "lanes": 10}
_UNITS = {
    "s": "s",
    "bytes": "bytes",
    "nat": "suffix:nat",
    "tokens/s": "suffix:tokens/s",
}
_SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
_TAG = "penstock"
_VALUE = "count"
"""Heading of a table's numbers."""


def render(board: Board) -> str:
    """The JSON of one dashboard; the same every time."""
    made = (
        build.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags([_TAG])
        .time("now-1h", "now")
        .refresh("15s")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(build.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_runs())
        .annotation(_events())
        .link(
            build.DashboardLink("Penstock")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([_TAG])
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
        )
    )
    number = 0
    for title, panels in board.rows.items():
        number += 1
        made.with_row(build.Row(title).id(number))
        for panel in panels:
            number += 1
            made.with_panel(_panel(panel, number))
    return JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(made.build()) + "\n"


def _runs() -> build.QueryVariable:
    return (
        build.QueryVariable("run")
        .label("Run")
        .datasource(_SOURCE)
        .query(f"label_values({selected('run/step').partition('{')[0]}, run)")
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_DESC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _events() -> build.AnnotationQuery:
    """Accidents, as lines across every picture."""
    kinds = selected("event/{kind}").replace("}", ', kind=~"died|warning|rolled_back|guard"}')
    expr = f"sum by (run, kind) (increase({kinds}[$__rate_interval])) > 0"
    return build.AnnotationQuery().name("Accidents").datasource(_SOURCE).enable(True).icon_color("red").expr(expr)


def _panel(panel: Panel, number: int) -> timeseries.Panel | stat.Panel | statetimeline.Panel | table.Panel:
    made = _drawn(panel)
    made.id(number).title(panel.title).description(_description(panel)).datasource(_SOURCE)
    made.unit(panel.unit or _unit(panel.queries[0])).height(_HEIGHT.get(panel.kind, 8)).span(panel.width)
    if panel.whole:
        made.decimals(0)
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).expr(query.expr).legend_format(query.legend).datasource(_SOURCE)
        if panel.kind == "table":  # otherwise every series is a table of its own, behind a menu
            target.format(PromQueryFormat.TABLE)
        made.with_target(target.instant() if panel.kind in ("stat", "table") else target.range())
    return made


def _drawn(panel: Panel) -> timeseries.Panel | stat.Panel | statetimeline.Panel | table.Panel:
    if panel.kind == "stat":
        newest = common_builders.ReduceDataOptions().calcs(["lastNotNull"])
        drawn = stat.Panel().reduce_options(newest).graph_mode(common.BigValueGraphMode.NONE)
        return drawn.text_mode(common.BigValueTextMode.VALUE_AND_NAME)
    if panel.kind == "table":
        columns = {"excludeByName": {"Time": True}, "renameByName": {"Value": _VALUE}}
        most_first = common_builders.TableSortByFieldState().display_name(_VALUE).desc(True)
        drawn_table = table.Panel().show_header(True).sort_by([most_first])
        return drawn_table.with_transformation(model.DataTransformerConfig("organize", options=columns))
    if panel.kind == "lanes":
        words = {
            "0": model.ValueMappingResult(text=" ", color="transparent"),
            "1": model.ValueMappingResult(text=" ", color="green"),
        }
        return statetimeline.Panel().mappings([model.ValueMap(options=words)]).merge_values(True)
    lines = timeseries.Panel().line_width(1.5).show_points(common.VisibilityMode.NEVER)
    lines.legend(common_builders.VizLegendOptions().show_legend(True))  # the library's default is none
    lines.tooltip(
        common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
    )
    if panel.kind in ("stack", "share"):
        mode = common.StackingMode.PERCENT if panel.kind == "share" else common.StackingMode.NORMAL
        lines.stacking(common_builders.StackingConfig().mode(mode)).fill_opacity(60)
    return lines


def _description(panel: Panel) -> str:
    """What every metric of a panel means, with its estimator, once."""
    said = [panel.note] if panel.note else []
    for query in panel.queries:
        for name in query.metrics:
            known = metric(name)
            estimator = f" ({known.estimator})" if known.estimator else ""
            said.append(f"`{name}`: {known.help}{estimator}.")
    return "\n\n".join(dict.fromkeys(said))


def _unit(query: Query) -> str:
    known = metric(query.metrics[0])
    return "percentunit" if known.help.startswith("share") else _UNITS.get(known.unit, "short")
