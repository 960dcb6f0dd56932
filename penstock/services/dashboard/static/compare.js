// Two runs side by side: this one and another one in its folder.

import { make, whole } from "./format.js";

/** What is drawn first: of each line the first metric that both runs have. */
const FIRST = [
  ["eval/sampled/accuracy", "reward/solved", "reward/mean"],
  ["reward/mean", "actor/entropy"],
  ["kl/reference", "kl/offpolicy"],
  ["off_policy/mean", "rollout_corr/ess"],
];
const OVER = { steps: "train steps", tokens: "tokens trained on", seconds: "seconds of training" };
const NOTHING = "–";

/** Builds the comparison inside `element`; returns what takes it down again, and what chooses a run. */
export function mount(element, api) {
  const comparison = new Comparison(element, api);
  comparison.load();
  return { destroy: () => comparison.destroy(), show: (run) => comparison.show(run) };
}

/** A figure as people read it: digits in groups when it is large, four of them when it is not whole. */
export function shown(value, unit = "") {
  if (value === null || value === undefined) return NOTHING;
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  const text = Number.isInteger(value) || size >= 1e4 ? whole(Math.round(value)) : size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  return `${text.replace(/^-/, "−")}${unit ? ` ${unit}` : ""}`;
}

/** A value of a run file, in its spelling. */
export function spelled(value, isThere) {
  if (!isThere) return "not there";
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** How much larger b is than a, where that says anything. */
export function change(a, b) {
  if (typeof a !== "number" || typeof b !== "number" || a === b || a * b <= 0) return "";
  const ratio = b / a;
  if (ratio >= 10 || ratio <= 0.1) return `× ${Number(ratio.toPrecision(2))}`;
  return `${ratio > 1 ? "+" : "−"}${Number(Math.abs(100 * (ratio - 1)).toPrecision(2))} %`;
}

class Comparison {
  constructor(element, api) {
    this.root = element;
    this.api = api;
    this.asked = 0; // counts what was asked for; an answer to an older question is thrown away
    this.run = null;
    this.over = "steps";
    this.metrics = [];
    this.chosen = [];
    this.build();
  }

  destroy() {
    this.asked += 1;
    this.root.replaceChildren();
  }

  build() {
    this.runBox = make("select", { "aria-label": "the other run", onchange: () => this.show(this.runBox.value) });
    this.again = make("button", { type: "button", class: "btn small", title: "both runs may be going on", onclick: () => this.show(this.run) }, "read again");
    const along = () => {
      this.over = this.overBox.value;
      this.drawPlots();
    };
    this.overBox = make("select", { "aria-label": "curves over", onchange: along }, Object.entries(OVER).map(([value, text]) => make("option", { value }, `over ${text}`)));
    this.problem = make("p", { class: "co-problem", role: "alert", hidden: true });
    this.plots = make("div", { class: "co-plots" });
    this.figures = make("section");
    this.differences = make("section");
    this.body = make("div", { hidden: true }, this.plots, make("div", { class: "co-tables" }, this.figures, this.differences));
    const bar = make("div", { class: "co-bar" }, make("label", {}, "this run and ", this.runBox), this.overBox, this.again);
    this.root.replaceChildren(make("section", { class: "compare" }, bar, this.problem, this.body));
  }

  say(problem) {
    this.problem.textContent = problem ?? "";
    this.problem.hidden = !problem;
  }

  /** What the API says, or null when something else was asked for meanwhile, or it failed, which is shown. */
  async ask(path, parameters, turn) {
    try {
      const found = await this.api.get(`compare/${path}`, parameters);
      return turn === this.asked ? found : null;
    } catch (error) {
      if (turn === this.asked) this.say(error.message);
      return null;
    }
  }

  async load() {
    const turn = (this.asked += 1);
    const runs = await this.ask("runs", {}, turn);
    if (!runs) return;
    this.runBox.replaceChildren(...runs.map(({ name, state, step }) => make("option", { value: name }, `${name} (${state}, step ${whole(step)})`)));
    for (const control of [this.runBox, this.overBox, this.again]) control.disabled = !runs.length;
    if (runs.length) await this.show(runs[0].name);
    else this.say("There is no other run in this run’s folder.");
  }

  async show(run) {
    const turn = (this.asked += 1);
    this.run = run;
    this.runBox.value = run;
    const found = await this.ask("with", { run }, turn);
    if (!found) return;
    this.say(null);
    this.body.hidden = false;
    this.metrics = found.metrics;
    this.drawFigures(found);
    this.drawDifferences(found);
    this.choosePlots();
    await this.drawPlots();
  }

  // --- curves -------------------------------------------------------------------------------------

  choosePlots() {
    const kept = this.chosen.filter((name) => this.metrics.includes(name));
    const picked = new Set(kept);
    if (!kept.length) {
      for (const names of [...FIRST, ...this.metrics.map((name) => [name])]) {
        const name = names.find((each) => this.metrics.includes(each) && !picked.has(each));
        if (name && picked.size < FIRST.length) picked.add(name);
      }
    }
    this.chosen = [...picked];
    this.plots.replaceChildren(...this.chosen.map((name, place) => this.plotBox(name, place)));
  }

  plotBox(name, place) {
    const pick = () => {
      this.chosen[place] = box.value;
      this.drawPlot(place);
    };
    const box = make("select", { "aria-label": `metric of plot ${place + 1}`, onchange: pick }, this.metrics.map((each) => make("option", { value: each, selected: each === name }, each)));
    return make("figure", { class: "co-plot" }, make("figcaption", {}, box), make("div", { class: "co-canvas" }));
  }

  drawPlots() {
    return Promise.all(this.chosen.map((_, place) => this.drawPlot(place)));
  }

  async drawPlot(place) {
    const [metric, over] = [this.chosen[place], this.over];
    const found = await this.ask("curves", { run: this.run, metric, over }, this.asked);
    if (!found || metric !== this.chosen[place] || over !== this.over) return;
    this.api.plot(this.plots.children[place].querySelector(".co-canvas"), { series: found.series, xlabel: OVER[over], ylabel: metric });
  }

  // --- tables -------------------------------------------------------------------------------------

  drawFigures(found) {
    const rows = [];
    let group = "";
    for (const figure of found.figures) {
      if (figure.group !== group) rows.push(make("tr", { class: "co-group" }, make("th", { colspan: 4, scope: "rowgroup" }, figure.group)));
      group = figure.group;
      const values = [figure.a, figure.b].map((value) => make("td", {}, shown(value, figure.unit)));
      rows.push(make("tr", {}, make("th", { scope: "row" }, figure.name), values, make("td", { class: "co-quiet" }, change(figure.a, figure.b))));
    }
    this.figures.replaceChildren(make("h2", {}, "What came of them"), table(found, ["change"], rows));
  }

  drawDifferences(found) {
    const rows = found.differences.map(({ key, a, b, only }) => {
      const values = [[a, only !== "b"], [b, only !== "a"]].map(([value, isThere]) => make("td", { class: isThere ? null : "co-quiet" }, spelled(value, isThere)));
      return make("tr", {}, make("th", { scope: "row" }, key), values);
    });
    const nothing = make("p", { class: "co-quiet" }, "Nothing: the run files are the same.");
    this.differences.replaceChildren(make("h2", {}, "What differs in the run files"), rows.length ? table(found, [], rows) : nothing);
  }
}

function table(found, more, rows) {
  const heads = ["", found.a, found.b, ...more].map((text) => make("th", { scope: "col" }, text));
  return make("table", {}, make("thead", {}, make("tr", {}, heads)), make("tbody", {}, rows));
}
