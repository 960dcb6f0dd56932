// Curves over train steps, drawn by uPlot. All charts share the cursor, the range of steps and the marks.

import { make, short, whole } from "./format.js";
import { colour, onTheme } from "./theme.js";

export const FONT = '10px Inter, system-ui, "Segoe UI", sans-serif';

/** What all charts of a page have in common. */
export class Board {
  constructor(series) {
    this.series = series;
    this.charts = new Set();
    this.marks = [];
    this.onHover = () => {};
    this.onZoom = () => {};
    onTheme(() => {
      for (const chart of this.charts) chart.rebuild();
    });
  }

  /** Draw what is new. */
  refresh() {
    for (const chart of this.charts) chart.refresh();
  }

  /** The mark nearest to a step, within so many steps. */
  markNear(step, within) {
    let best = null;
    for (const mark of this.marks) {
      const away = Math.abs(mark.step - step);
      if (away <= within && (best === null || away <= Math.abs(best.step - step))) best = mark;
    }
    return best;
  }
}

/** A guard that may not fire any more and has done nothing, or only what it does at the end: no firing. */
export function isExhausted(event) {
  return event.kind === "guard" && event.facts.what === "exhausted";
}

/** Colours of marks, by the kind of their event. */
export const MARK_COLOURS = {
  steered: "mark-steered",
  guard: "mark-guard",
  rolled_back: "mark-guard",
  autoscaling: "mark-restarted",
  refused: "mark-refused",
  died: "mark-died",
  failed: "mark-died",
};

/** A card with a title, the curves' names and values, and room for a drawing. */
export class Card {
  constructor({ title, hint = "", options = null }) {
    this.title = title;
    this.legend = make("span", { class: "legend" });
    this.plot = make("div", { class: "plot" });
    this.name = make("button", { type: "button", class: "title", title: hint ? `${hint} (click to enlarge)` : "Enlarge", "aria-expanded": "false" }, title);
    this.name.addEventListener("click", () => this.enlarge());
    this.element = make("figure", { class: "card", tabindex: "0", "aria-label": title }, make("figcaption", {}, this.name, this.legend, options), this.plot);
    this.element.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.element.classList.contains("large")) {
        this.enlarge();
        event.stopPropagation();
      }
    });
  }

  enlarge() {
    const large = this.element.classList.toggle("large");
    this.name.setAttribute("aria-expanded", String(large));
    document.body.classList.toggle("has-large", large);
  }

  /** Names of what is drawn with their values: at the cursor, or the newest. */
  tell(entries) {
    const wanted = entries.map((entry) => `${entry.label}${entry.colour}`).join("|");
    if (wanted !== this.told) {
      this.told = wanted;
      this.legend.replaceChildren(
        ...entries.map((entry) => {
          const dot = make("i", {}, entry.tag ? entry.label : "");
          dot.style.background = entry.colour;
          return make("span", { class: entry.tag ? "chip tag" : "chip", title: entry.hint }, dot, entry.tag ? "" : entry.label, make("b"));
        }),
      );
    }
    entries.forEach((entry, index) => {
      const value = this.legend.children[index].lastChild;
      if (value.textContent !== entry.value) value.textContent = entry.value;
    });
  }
}

/** Curves in a card. `curves(series)` says which: [{name, label, colour, dash}]. */
export class Chart extends Card {
  constructor(board, spec) {
    super(spec);
    this.board = board;
    this.spec = spec;
    this.uplot = null;
    this.shape = "";
    board.charts.add(this);
    this.empty = make("p", { class: "empty" });
    this.plot.append(this.empty);
    this.size = { width: 0, height: 0 };
    new ResizeObserver(([entry]) => {
      const wider = Math.floor(entry.contentRect.width) !== this.size.width;
      this.size = { width: Math.floor(entry.contentRect.width), height: Math.floor(entry.contentRect.height) };
      if (this.uplot && this.size.width > 0) {
        this.uplot.setSize(this.size);
        if (wider) this.fitLegend(true);
      } else this.refresh();
    }).observe(this.plot);
    this.element.addEventListener("keydown", (event) => this.onKey(event));
    this.element.addEventListener("blur", () => this.uplot?.setCursor({ left: -10, top: -10 }));
  }

  /** Draw anew with the present colours. */
  rebuild() {
    this.uplot?.destroy();
    this.uplot = null;
    this.told = null;
    this.refresh();
  }

  refresh() {
    if (this.element.getClientRects().length === 0) return; // in a view that is not shown
    if (this.size.width < 20 || this.size.height < 20) return;
    const series = this.board.series;
    this.curves = this.spec.curves(series).map((curve) => ({ ...curve, stroke: colour(curve.colour) }));
    const shape = this.curves.map((curve) => curve.name).join(",") + (series.width > 1 ? " wide" : "");
    this.empty.hidden = this.curves.length > 0 && series.length > 0;
    this.empty.textContent = (series.length > 0 && this.spec.empty) || "nothing recorded yet";
    if (shape !== this.shape) {
      this.uplot?.destroy();
      this.uplot = null;
      this.shape = shape;
    }
    if (this.curves.length === 0 || series.length === 0) {
      this.tell([]);
      return;
    }
    const data = this.data(series);
    const anew = !this.uplot;
    if (this.uplot) this.uplot.setData(data);
    else this.uplot = new window.uPlot(this.options(), data, this.plot);
    this.tellValues();
    this.fitLegend(anew);
  }

  /** A second line for names that do not fit on one. It stays: the drawing must not jump with the values. */
  fitLegend(anew) {
    if (anew) this.legend.classList.remove("two");
    if (this.legend.scrollWidth > this.legend.clientWidth + 1) this.legend.classList.add("two");
  }

  /** [steps, curve, …]: a stack adds them up; a bucket of several steps brings its smallest and largest value. */
  data(series) {
    const data = [series.last];
    if (this.spec.stack) {
      let below = new Array(series.length).fill(0);
      for (const curve of this.curves) {
        const own = series.means(curve.name);
        below = below.map((sum, at) => sum + (own[at] ?? 0));
        data.push(below);
      }
      return data;
    }
    for (const curve of this.curves) {
      const [means, low, high] = series.values.get(curve.name) ?? [[]];
      if (series.width > 1) data.push(high ?? means, low ?? means);
      data.push(means);
    }
    return data;
  }

  options() {
    const stacked = this.spec.stack;
    const wide = this.board.series.width > 1 && !stacked;
    const series = [{}];
    const bands = [];
    this.curves.forEach((curve, index) => {
      if (wide) {
        const at = series.length;
        const hidden = { stroke: "transparent", points: { show: false }, spanGaps: true };
        series.push(hidden, hidden);
        bands.push({ series: [at, at + 1], fill: withAlpha(curve.stroke, 0.16) });
      }
      series.push({
        label: curve.label,
        stroke: stacked ? withAlpha(curve.stroke, 0) : curve.stroke,
        width: curve.width ?? 1.6,
        dash: curve.dash,
        spanGaps: true,
        points: { show: curve.sparse ?? false, size: 4, fill: curve.stroke },
        fill: stacked && index === 0 ? withAlpha(curve.stroke, 0.62) : undefined,
        paths: stacked ? window.uPlot.paths.stepped({ align: -1 }) : undefined,
      });
      if (stacked && index > 0) bands.push({ series: [index + 1, index], fill: withAlpha(curve.stroke, 0.62) });
    });
    return {
      ...this.size,
      series,
      bands,
      legend: { show: false },
      padding: [6, 14, 0, 0],
      cursor: {
        y: false,
        points: { size: 6, width: 0, show: (u, at) => pointFor(u, at, wide) },
        drag: { x: true, y: false, setScale: false },
        sync: { key: "steps", scales: ["x", null], setSeries: false },
      },
      scales: { x: { time: false, range: (u, low, high) => widened(low, high) }, y: { range: (u, low, high) => this.range(low, high) } },
      axes: this.axes(),
      hooks: {
        setCursor: [(u) => this.onCursor(u)],
        setSelect: [(u) => this.onSelect(u)],
        draw: [(u) => this.drawMore(u)],
      },
    };
  }

  axes() {
    const text = colour("text-dim");
    const grid = { stroke: colour("grid"), width: 1 };
    const shared = { stroke: text, font: FONT, grid, ticks: { show: false } };
    return [
      { ...shared, size: 18, gap: 3, space: 44, grid: { show: false }, incrs: WHOLE, values: (u, splits) => splits.map(axisStep) },
      { ...shared, size: axisSize, gap: 4, space: (u) => (u.height < 110 ? 15 : 26), values: (u, splits) => axisValues(splits), ...this.spec.axis },
    ];
  }

  range(low, high) {
    const { floor, ceiling, atLeast } = this.spec;
    if (low === null || high === null) return [floor ?? 0, ceiling ?? 1];
    if (atLeast !== undefined) high = Math.max(high, atLeast);
    const room = (high - low || Math.abs(high) || 1) * 0.08;
    let from = low - room;
    let to = high + room;
    if (floor !== undefined && from < floor) from = floor;
    if (this.spec.fromFloor) from = floor;
    if (ceiling !== undefined && to > ceiling) to = ceiling + (ceiling - from) * 0.03;
    return [from, to];
  }

  drawMore(u) {
    drawMarks(u, this.board.marks);
  }

  onCursor(u) {
    this.tellValues(u.cursor.idx);
    if (u.cursor.event || u === this.moved) this.board.onHover(u.cursor.idx, u.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : null, this.perPixel(u));
  }

  perPixel(u) {
    return u.bbox.width ? (u.scales.x.max - u.scales.x.min) / (u.bbox.width / devicePixelRatio) : 0;
  }

  onSelect(u) {
    if (u.select.width < 6) return;
    const first = Math.floor(u.posToVal(u.select.left, "x"));
    const last = Math.ceil(u.posToVal(u.select.left + u.select.width, "x"));
    u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.board.onZoom([Math.max(0, first), last]);
  }

  onKey(event) {
    const u = this.uplot;
    if (!u || event.target !== this.element) return;
    const steps = this.board.series.last;
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 };
    let at = u.cursor.idx ?? steps.length;
    if (event.key in moves) at += moves[event.key];
    else if (event.key === "Home") at = 0;
    else if (event.key === "End") at = steps.length - 1;
    else if (event.key === "Enter") return this.enlarge();
    else return;
    at = Math.min(steps.length - 1, Math.max(0, at));
    event.preventDefault();
    this.moved = u;
    u.setCursor({ left: u.valToPos(steps[at], "x"), top: 10 });
  }

  /** The values at a place, or the newest ones, in the legend and for whoever cannot see the drawing. */
  tellValues(at = null) {
    const series = this.board.series;
    const entries = this.curves.map((curve) => {
      const value = at === null ? series.newest(curve.name) : (series.means(curve.name)[at] ?? null);
      return { label: curve.label, colour: curve.stroke, value: short(value), hint: curve.name, tag: curve.tag };
    });
    this.tell(entries);
    if (at === null) {
      const said = entries.map((entry) => `${entry.label} ${entry.value}`).join(", ");
      this.element.setAttribute("aria-label", `${this.title}, newest: ${said || "nothing recorded yet"}`);
    }
  }
}

const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6];

function axisStep(step) {
  return step >= 1e4 ? `${step / 1e3}k` : whole(step);
}

/** Marks of an axis with as many digits as tell neighbours apart. */
export function axisValues(splits) {
  const apart = splits.length > 1 ? Math.abs(splits[1] - splits[0]) : Math.abs(splits[0]) || 1;
  return splits.map((value) => axisValue(value, apart));
}

function axisValue(value, apart) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${rounded(value / 1e6, apart / 1e6)}M`;
  if (size >= 1e4) return `${rounded(value / 1e3, apart / 1e3)}k`;
  if (size !== 0 && size < 0.001) return value.toExponential(digits(apart / 10 ** Math.floor(Math.log10(size)))).replace("e-0", "e-");
  return rounded(value, apart);
}

function rounded(value, apart) {
  return Number(value.toFixed(digits(apart))).toString();
}

/** Digits behind the point of a number that is 1, 2, 2.5 or 5 times a power of ten. */
function digits(apart) {
  const isWhole = (value) => value > 0.9 && Math.abs(value - Math.round(value)) < 1e-3;
  let found = 0;
  while (found < 8 && !isWhole(apart * 10 ** found)) found++;
  return found;
}

/** Room for the longest mark. */
function axisSize(u, values) {
  return Math.max(36, 8 + 6 * Math.max(0, ...(values ?? []).map((text) => text.length)));
}

/** One step alone still needs a width. */
function widened(low, high) {
  return low === high ? [low - 1, high + 1] : [low, high];
}

function pointFor(u, at, wide) {
  if (wide && at % 3 !== 0) return null;
  const point = document.createElement("div");
  point.className = "u-cursor-pt";
  const stroke = u.series[at].stroke;
  point.style.background = typeof stroke === "function" ? stroke(u, at) : stroke;
  point.style.width = point.style.height = "6px";
  point.style.marginLeft = point.style.marginTop = "-3px";
  return point;
}

export function drawMarks(u, marks) {
  const { ctx, bbox } = u;
  const ratio = devicePixelRatio;
  const { min, max } = u.scales.x;
  ctx.save();
  for (const mark of marks) {
    if (mark.step < min || mark.step > max) continue;
    const x = Math.round(u.valToPos(mark.step, "x", true));
    const hollow = isExhausted(mark);
    ctx.strokeStyle = ctx.fillStyle = colour(hollow ? "mark-refused" : (MARK_COLOURS[mark.kind] ?? "text-dim"));
    ctx.lineWidth = ratio;
    if (!hollow) {
      ctx.globalAlpha = 0.45;
      ctx.setLineDash([3 * ratio, 3 * ratio]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.setLineDash([]);
      ctx.globalAlpha = 1;
    }
    ctx.beginPath();
    ctx.moveTo(x - 3.5 * ratio, bbox.top - 1 * ratio);
    ctx.lineTo(x + 3.5 * ratio, bbox.top - 1 * ratio);
    ctx.lineTo(x, bbox.top + 5 * ratio);
    ctx.closePath();
    if (hollow) ctx.stroke();
    else ctx.fill();
  }
  ctx.restore();
}

export function withAlpha(hex, alpha) {
  const value = Number.parseInt(hex.slice(1), 16);
  return `rgba(${value >> 16}, ${(value >> 8) & 255}, ${value & 255}, ${alpha})`;
}
