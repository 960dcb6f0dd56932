// Every metric that was recorded: pick some by a word, see what they mean.

import { get } from "./api.js";
import { Chart } from "./charts.js";
import { make } from "./format.js";

const MOST = 24;

/** Builds the view inside `element`. `board` has the charts' common parts, `again` has the server tell all metrics anew. */
export function mount(element, { board, again }) {
  return new Metrics(element, board, again);
}

class Metrics {
  constructor(element, board, again) {
    this.board = board;
    this.again = again;
    this.known = {};
    this.names = [];
    this.charts = [];
    this.search = make("input", { type: "search", class: "form-control form-control-sm", placeholder: "Words of a metric's name or meaning, as: kl lag", "aria-label": "Find metrics" });
    this.count = make("span", { class: "legend" });
    this.grid = make("div", { class: "metric-grid" });
    element.classList.add("metrics");
    element.append(make("div", { class: "metric-head" }, this.search, this.count), this.grid);
    this.search.addEventListener("input", () => this.choose());
    this.learn();
  }

  async learn() {
    try {
      this.known = await get("metrics");
      this.choose();
    } catch (error) {
      this.count.textContent = error.message;
    }
  }

  /** What the server is asked for besides the overview's. */
  select() {
    return document.body.dataset.view === "metrics" ? this.names : [];
  }

  choose() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = ([name, told]) => words.every((word) => `${name} ${told.help ?? ""}`.toLowerCase().includes(word));
    const found = Object.entries(this.known).filter(fits);
    this.names = found.slice(0, MOST).map(([name]) => name);
    this.count.textContent = found.length > MOST ? `${found.length} metrics, the first ${MOST} are shown` : `${found.length} metrics`;
    for (const chart of this.charts) this.board.charts.delete(chart);
    this.charts = this.names.map((name, index) => this.chart(name, index));
    this.grid.replaceChildren(...this.charts.map((chart) => chart.element));
    this.again();
  }

  chart(name, index) {
    const told = this.known[name];
    const meaning = [told.help, told.estimator].filter(Boolean).join("; ");
    const chart = new Chart(this.board, {
      title: name,
      hint: meaning,
      curves: (series) => (series.values.has(name) ? [{ name, label: told.unit || "value", colour: `line-${(index % 3) + 1}` }] : []),
    });
    if (meaning) chart.element.append(make("p", { class: "meaning", title: meaning }, meaning));
    return chart;
  }
}
