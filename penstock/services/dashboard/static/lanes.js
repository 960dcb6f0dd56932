// One lane per actor: what it did in the last minutes.

import { clock, duration, make } from "./format.js";
import { colour, onTheme } from "./theme.js";

/** What a phase counts as; the first pattern that fits. */
const KINDS = [
  ["swap", /^swapping/],
  ["generate", /^generating/],
  ["publish", /^publishing|gathering|computing the probe/],
  ["train", /^(training|forward|updating|assembling|recomputing)/],
  ["save", /checkpoint|writing the model|wrote|archiv|audit/],
  ["wait", /^(waiting|ready|running|idle|paused)/],
  ["start", /^(starting|loading|loaded|meeting|reading)/],
  ["end", /^(draining|ended|leaving|dead)/],
];
const NAMES = {
  generate: "generating",
  swap: "swapping weights",
  train: "forward and backward",
  publish: "publishing",
  save: "checkpoint, model",
  wait: "waiting",
  start: "starting",
  end: "leaving, ended",
};
const BUSY = new Set(["generate", "train"]);

export function kindOf(phase) {
  return KINDS.find(([, pattern]) => pattern.test(phase))?.[0] ?? "train";
}

export const SPANS = [
  [60, "1 min"],
  [300, "5 min"],
  [1800, "30 min"],
  [14400, "4 h"],
];
const ROW = 32;
const LABEL = 78;
const SHARE = 44;
const FOOT = 18;

export class Lanes {
  /** `onSpan` is called when another length of time is to be shown. */
  constructor(onSpan) {
    this.spans = {};
    this.end = 0;
    this.span = SPANS[0][0];
    this.workers = new Map();
    this.live = false;
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.tip = make("div", { class: "tip", hidden: true });
    this.frame = make("div", { class: "lanes" }, this.canvas, this.tip);
    this.told = make("span", { class: "visually-hidden" });
    this.legend = make("span", { class: "legend" });
    const choose = make(
      "select",
      { class: "form-select form-select-sm", "aria-label": "Time shown in the lanes" },
      SPANS.map(([seconds, text]) => make("option", { value: seconds }, text)),
    );
    choose.addEventListener("change", () => {
      this.span = Number(choose.value);
      this.clear();
      onSpan();
    });
    this.element = make(
      "figure",
      { class: "card", "aria-label": "What every actor is doing" },
      make("figcaption", {}, make("span", { class: "title" }, "Lanes"), this.legend, choose),
      this.frame,
      this.told,
    );
    this.width = 0;
    new ResizeObserver(([entry]) => {
      this.width = Math.floor(entry.contentRect.width);
      this.height = Math.floor(entry.contentRect.height);
      this.draw();
    }).observe(this.frame);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => (this.tip.hidden = true));
    onTheme(() => this.draw());
  }

  clear() {
    this.spans = {};
    this.end = 0;
  }

  /** Seconds of one dot. */
  get resolution() {
    return Math.max(0.05, this.span / Math.max(100, this.width - LABEL - SHARE));
  }

  /** From when on the server is to tell: what it told last may have gone on. */
  get from() {
    return this.end ? Math.max(0, Math.floor((this.end - 12) / this.resolution) * this.resolution) : 0;
  }

  /** Take in an answer. */
  merge(answer, asked) {
    for (const [name, spans] of Object.entries(answer.lanes)) {
      const before = (this.spans[name] ?? []).filter((span) => span[1] < asked).map((span) => [span[0], span[1], Math.min(span[2], asked)]);
      const begin = answer.lanes_end - this.span - 5;
      this.spans[name] = before.concat(spans).filter((span) => span[2] > begin);
    }
    this.end = Math.max(this.end, answer.lanes_end);
    this.shares = answer.shares;
    this.now = answer.at;
    const view = answer.status.facts.view;
    this.live = answer.status.facts.alive;
    this.workers = new Map((view?.workers ?? []).map((worker) => [worker.name, worker]));
  }

  names() {
    const rank = (name) => (name.startsWith("learner") || name.startsWith("sft") ? 0 : name.startsWith("rollout") ? 1 : 2);
    return Object.keys(this.spans)
      .filter((name) => this.spans[name].length > 0)
      .sort((a, b) => rank(a) - rank(b) || a.localeCompare(b, "en", { numeric: true }));
  }

  draw() {
    if (!this.width || !this.height) return;
    const names = this.names();
    this.shown = names;
    const ratio = devicePixelRatio;
    const row = Math.min(ROW, Math.max(10, (this.height - FOOT) / Math.max(1, names.length)));
    this.row = row;
    const height = Math.max(this.height, names.length * row + FOOT);
    this.canvas.width = this.width * ratio;
    this.canvas.height = height * ratio;
    this.canvas.style.width = `${this.width}px`;
    this.canvas.style.height = `${height}px`;
    const ctx = this.canvas.getContext("2d");
    ctx.scale(ratio, ratio);
    ctx.font = '11px Inter, system-ui, "Segoe UI", sans-serif';
    ctx.textBaseline = "middle";
    if (names.length === 0) {
      ctx.fillStyle = colour("text-dim");
      ctx.textAlign = "center";
      ctx.fillText("no activity recorded yet", this.width / 2, this.height / 2);
      return;
    }
    const end = this.live ? Math.max(this.end, Math.min(this.now ?? 0, this.end + 8)) : this.end;
    const begin = end - this.span;
    const room = this.width - LABEL - SHARE;
    this.scale = { begin, end, perSecond: room / this.span };
    const seen = new Set();
    const said = [];
    this.drawTimes(ctx, begin, end, names.length * row);
    ctx.textBaseline = "middle";
    names.forEach((name, index) => {
      const middle = index * row + row / 2;
      const bar = Math.min(20, Math.round(row * 0.68));
      ctx.textAlign = "right";
      ctx.fillStyle = colour("text");
      ctx.fillText(name, LABEL - 8, middle, LABEL - 10);
      ctx.fillStyle = colour("lane-empty");
      ctx.fillRect(LABEL, middle - bar / 2, room, bar);
      for (const [phase, from, to] of this.extended(name, end)) {
        const kind = kindOf(phase);
        const left = Math.max(begin, from);
        if (to <= left) continue;
        seen.add(kind);
        ctx.fillStyle = colour(`lane-${kind}`);
        const x = LABEL + (left - begin) * this.scale.perSecond;
        ctx.fillRect(x, middle - bar / 2, Math.max(1, (to - left) * this.scale.perSecond), bar);
      }
      const share = busyShare(this.shares?.[name] ?? {});
      said.push(`${name} busy ${share}`);
      ctx.fillStyle = colour("text-dim");
      ctx.fillText(share, this.width - 6, middle);
    });
    this.tell(seen, said);
  }

  /** The lane's spans; the present phase goes on until now. */
  extended(name, end) {
    const spans = this.spans[name];
    const last = spans.at(-1);
    const worker = this.workers.get(name);
    if (!this.live || !worker || last[2] >= end) return spans;
    return [...spans, [worker.state, last[2], end]];
  }

  drawTimes(ctx, begin, end, top) {
    const every = [5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600].find((step) => this.span / step <= 8) ?? 3600;
    ctx.textAlign = "center";
    ctx.fillStyle = colour("text-dim");
    ctx.strokeStyle = colour("grid");
    for (let at = Math.ceil(begin / every) * every; at <= end; at += every) {
      const x = Math.round(LABEL + (at - begin) * this.scale.perSecond) + 0.5;
      ctx.beginPath();
      ctx.moveTo(x, 0);
      ctx.lineTo(x, top);
      ctx.stroke();
      const text = clock(at).slice(-8);
      if (x > LABEL + 24 && x < this.width - SHARE - 12) ctx.fillText(every < 60 ? text : text.slice(0, 5), x, top + FOOT / 2);
    }
    ctx.textAlign = "right";
    ctx.fillText("busy", this.width - 6, top + FOOT / 2);
  }

  tell(seen, said) {
    const kinds = Object.keys(NAMES).filter((kind) => seen.has(kind));
    const wanted = kinds.join();
    if (wanted !== this.toldKinds) {
      this.toldKinds = wanted;
      this.legend.replaceChildren(
        ...kinds.map((kind) => {
          return make("span", { class: "chip" }, make("i", { class: `lane-${kind}` }), NAMES[kind]);
        }),
      );
    }
    this.told.textContent = said.join(", ");
  }

  point(event) {
    if (!this.scale || !this.shown.length) return;
    const x = event.offsetX;
    const name = this.shown[Math.floor(event.offsetY / this.row)];
    const at = this.scale.begin + (x - LABEL) / this.scale.perSecond;
    const span = name && this.extended(name, this.scale.end).find(([, from, to]) => from <= at && at < to);
    this.tip.hidden = !span;
    if (!span) return;
    this.tip.textContent = `${name}: ${span[0]} · ${duration2(span[2] - span[1])} · ${clock(at)}`;
    this.tip.style.left = `${Math.min(x + 12, this.width - this.tip.offsetWidth - 4)}px`;
    this.tip.style.top = `${Math.max(0, event.offsetY - 26)}px`;
  }
}

/** Which part of the time was work. */
function busyShare(phases) {
  let busy = 0;
  let all = 0;
  for (const [phase, seconds] of Object.entries(phases)) {
    all += seconds;
    if (BUSY.has(kindOf(phase))) busy += seconds;
  }
  return all ? `${Math.round((100 * busy) / all)} %` : "–";
}

function duration2(seconds) {
  return seconds < 10 ? `${seconds.toFixed(2)} s` : duration(seconds);
}
