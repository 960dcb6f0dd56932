// The lags of trained tokens over time: a column per bucket of steps, a row per bucket of lag, the share as colour.

import { Chart, drawMarks } from "./charts.js";
import { short } from "./format.js";
import { LAGS, lagPlace, lagRow } from "./series.js";
import { colour, theme } from "./theme.js";

/** From nothing to all of it. */
const RAMPS = {
  light: [[243, 246, 249], [186, 222, 232], [96, 178, 205], [24, 120, 163], [12, 68, 112], [8, 38, 72]],
  dark: [[24, 30, 38], [21, 62, 84], [22, 106, 138], [52, 156, 180], [132, 205, 206], [226, 248, 234]],
};

function shade(share, ramp) {
  const at = Math.sqrt(Math.min(1, Math.max(0, share))) * (ramp.length - 1);
  const low = Math.min(ramp.length - 2, Math.floor(at));
  const part = at - low;
  const mixed = ramp[low].map((value, index) => Math.round(value + (ramp[low + 1][index] - value) * part));
  return `rgb(${mixed.join(",")})`;
}

export class LagMap extends Chart {
  constructor(board, spec) {
    super(board, {
      ...spec,
      curves: (series) => this.rows(series),
    });
  }

  /** Buckets up to the last one that has ever had a token. */
  rows(series) {
    const there = LAGS.filter(([bucket]) => series.values.has(`off_policy/${bucket}/tokens`));
    const most = there.length ? LAGS.indexOf(there.at(-1)) : -1;
    this.buckets = LAGS.slice(0, most + 1);
    return this.buckets.map(([bucket, label]) => ({ name: `off_policy/${bucket}/tokens`, label, colour: "line-1" }));
  }

  data(series) {
    // uPlot only needs to know where the steps are; the cells are drawn by hand.
    return [series.last, series.last.map((_, at) => at % 2 ? -0.5 : this.buckets.length - 0.5)];
  }

  options() {
    const options = super.options();
    options.series = [{}, { paths: () => null, points: { show: false } }];
    options.bands = [];
    options.cursor.points = { show: false };
    options.scales.y = { range: () => [-0.5, this.buckets.length - 0.5] };
    options.hooks.drawClear = [(u) => this.drawCells(u)];
    return options;
  }

  axes() {
    const [x, y] = super.axes();
    return [x, { ...y, size: 40, splits: () => this.buckets.map((_, at) => at), values: (u, splits) => splits.map((at) => this.buckets[at]?.[1] ?? ""), grid: { show: false } }];
  }

  drawCells(u) {
    const series = this.board.series;
    const columns = this.buckets.map(([bucket]) => series.means(`off_policy/${bucket}/tokens`));
    const { ctx, bbox } = u;
    const ramp = RAMPS[theme()] ?? RAMPS.light;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.fillStyle = shade(0, ramp);
    ctx.fillRect(bbox.left, bbox.top, bbox.width, bbox.height);
    const edges = this.buckets.map((_, at) => [at + 0.5, at - 0.5].map((edge) => Math.round(u.valToPos(edge, "y", true))));
    for (let at = 0; at < series.length; at++) {
      let sum = 0;
      for (const column of columns) sum += column[at] ?? 0;
      if (!sum) continue;
      const left = Math.floor(u.valToPos((at ? series.last[at - 1] : series.first[at] - 1) + 0.5, "x", true));
      const right = Math.ceil(u.valToPos(series.last[at] + 0.5, "x", true));
      columns.forEach((column, row) => {
        if (!column[at]) return;
        ctx.fillStyle = shade(column[at] / sum, ramp);
        ctx.fillRect(left, edges[row][0], Math.max(1, right - left), edges[row][1] - edges[row][0]);
      });
    }
    ctx.restore();
  }

  drawMore(u) {
    this.drawBound(u);
    drawMarks(u, this.board.marks);
  }

  /** The bound that was in force, above the row of the largest lag that it admits. */
  drawBound(u) {
    const series = this.board.series;
    const bound = series.means("off_policy/bound");
    const mean = series.means("off_policy/mean");
    const { ctx, bbox } = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top - 2, bbox.width, bbox.height + 2);
    ctx.clip();
    const lines = [
      [bound, (lag) => Math.min(this.buckets.length - 0.5, lagRow(Math.round(lag)) + 0.5), colour("mark-died"), [5, 4]],
      [mean, lagPlace, colour("mean-line"), []],
    ];
    for (const [values, place, stroke, dash] of lines) {
      ctx.beginPath();
      ctx.strokeStyle = stroke;
      ctx.lineWidth = 1.5 * devicePixelRatio;
      ctx.setLineDash(dash.map((part) => part * devicePixelRatio));
      let open = false;
      values.forEach((value, at) => {
        if (value === null || value === undefined) return;
        const x = u.valToPos(series.last[at], "x", true);
        const y = u.valToPos(place(value), "y", true);
        if (open) ctx.lineTo(x, y);
        else ctx.moveTo(x, y);
        open = true;
      });
      ctx.stroke();
    }
    ctx.restore();
  }

  tellValues(at = null) {
    const series = this.board.series;
    const value = (name) => (at === null ? series.newest(name) : (series.means(name)[at] ?? null));
    const entries = [
      { label: "mean", colour: colour("mean-line"), value: short(value("off_policy/mean")), hint: "off_policy/mean" },
      { label: "largest", colour: "transparent", value: short(value("off_policy/max")), hint: "off_policy/max" },
      { label: "bound", colour: colour("mark-died"), value: short(value("off_policy/bound")), hint: "off_policy/bound" },
    ];
    if (at !== null) {
      const tokens = this.buckets.map(([bucket]) => series.means(`off_policy/${bucket}/tokens`)[at] ?? 0);
      const sum = tokens.reduce((total, one) => total + one, 0);
      const shares = this.buckets.map(([, label], row) => [label, tokens[row]]).filter(([, count]) => count > 0);
      for (const [label, count] of shares) {
        entries.push({ label: `lag ${label}`, colour: shade(count / sum, RAMPS[theme()]), value: `${Math.round((100 * count) / sum)} %` });
      }
    }
    this.tell(entries);
    if (at === null) {
      const said = entries.map((entry) => `${entry.label} ${entry.value}`).join(", ");
      this.element.setAttribute("aria-label", `${this.title}, newest: ${said}`);
    }
  }
}
