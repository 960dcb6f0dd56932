// Who is alive: the actors of the run, what they hold, and the last words of the dead.

import { clock, duration, make, short } from "./format.js";
import { kindOf } from "./lanes.js";

export class Fleet {
  /** `scorers` is a control that says how many of them there shall be; `onRemove(name)` lets a rollout worker or a
   * scorer leave. */
  constructor(scorers, onRemove) {
    this.onRemove = onRemove;
    this.rows = new Map();
    this.words = new Map();
    this.body = make("tbody");
    this.count = make("span", { class: "legend" });
    this.deaths = make("ul", { class: "deaths", "aria-label": "Last words of the dead" });
    const heads = [["actor"], ["doing"], ["version", 1], ["in flight", 1], ["tok/s", 1], [""]];
    this.table = make(
      "table",
      { class: "fleet" },
      make("thead", {}, make("tr", {}, heads.map(([text, right]) => make("th", { scope: "col", class: right ? "num" : null }, text || make("span", { class: "visually-hidden" }, "actions"))))),
      this.body,
    );
    this.element = make(
      "section",
      { class: "card", "aria-label": "Who is alive" },
      make("div", { class: "caption" }, make("span", { class: "title" }, "Actors"), this.count, scorers),
      make("div", { class: "scroll", tabindex: "0" }, this.table, this.deaths),
    );
    this.dialog = document.getElementById("ask");
  }

  /** Deaths and departures, from the run's events. */
  hear(events) {
    for (const event of events) {
      const name = event.facts.name;
      if (!name) continue;
      if (event.kind === "died") {
        this.words.set(name, event);
        this.mourn(name, event);
      }
      if (event.kind === "left") this.words.set(name, { ...event, gone: true, message: event.facts.cause || event.message });
      if (event.kind === "joined" && this.words.get(name)?.gone) this.words.delete(name);
    }
  }

  /** The last deaths, under the table. */
  mourn(name, event) {
    const link = make("button", { type: "button", class: "link" }, name);
    link.addEventListener("click", () => this.open(name, event));
    const said = event.message.split("\n")[0].replace(`${name} `, "");
    this.deaths.prepend(make("li", { title: event.message }, make("time", {}, clock(event.time)), link, make("span", {}, said)));
    while (this.deaths.children.length > 4) this.deaths.lastChild.remove();
  }

  show(facts, canSteer) {
    const view = facts.view;
    const workers = view?.workers ?? [];
    this.workers = workers;
    const rank = { learner: 0, rollout: 1, scorer: 2, store: 3 };
    const sorted = [...workers].sort((a, b) => rank[a.role] - rank[b.role] || a.name.localeCompare(b.name, "en", { numeric: true }));
    const there = new Set(sorted.map((worker) => worker.name));
    const gone = [...this.words.entries()].filter(([name]) => !there.has(name)).slice(-6);
    const wanted = [...sorted.map((worker) => worker.name), ...gone.map(([name]) => name)];
    for (const [name, row] of this.rows) {
      if (!wanted.includes(name)) {
        row.element.remove();
        this.rows.delete(name);
      }
    }
    const newest = Number((view?.version ?? "0.0").split(".")[1]);
    for (const worker of sorted) this.row(worker.name).fill(this.living(worker, newest, canSteer));
    for (const [name, event] of gone) this.row(name).fill(this.departed(name, event));
    wanted.forEach((name, index) => {
      const element = this.rows.get(name).element;
      if (this.body.children[index] !== element) this.body.insertBefore(element, this.body.children[index] ?? null);
    });
    const rollouts = workers.filter((worker) => worker.role === "rollout" && !worker.state.startsWith("dead")).length;
    const said = facts.alive ? `${rollouts} rollout worker${rollouts === 1 ? "" : "s"}, ${workers.length} actors` : "nothing runs";
    if (this.count.textContent !== said) this.count.textContent = said;
  }

  row(name) {
    if (!this.rows.has(name)) this.rows.set(name, new Row(() => this.open(name), () => this.onRemove(name)));
    return this.rows.get(name);
  }

  living(worker, newest, canSteer) {
    const behind = worker.version ? newest - Number(worker.version.split(".")[1]) : 0;
    const dead = worker.state.startsWith("dead");
    const flight = worker.role === "rollout" ? flightOf(worker) : "";
    return {
      name: worker.name,
      tone: dead ? "dead" : kindOf(worker.state),
      state: worker.state,
      version: worker.version ? (behind > 0 ? `${worker.version} −${behind}` : worker.version) : "",
      flight,
      rate: worker.tokens_per_second ? short(worker.tokens_per_second) : "",
      restarts: worker.restarts,
      removable: canSteer && this.isSpare(worker),
      hint: `process ${worker.pid ?? "–"} on ${worker.node || "–"}`,
    };
  }

  /** Whether the run can go on without it: rollout workers may all go, of the scorers one stays. */
  isSpare(worker) {
    if (worker.state === "leaving") return false;
    if (worker.role !== "scorer") return worker.role === "rollout";
    return this.workers.filter((one) => one.role === "scorer" && one.state !== "leaving").length > 1;
  }

  departed(name, event) {
    const ago = duration(Date.now() / 1000 - event.time);
    return { name, tone: "dead", gone: true, state: `${event.gone ? "left" : "died"} ${ago} ago`, version: "", flight: "", rate: "", restarts: 0, removable: false, hint: event.message };
  }

  /** Everything that is known of one actor. */
  open(name, words = this.words.get(name)) {
    const worker = this.workers.find((one) => one.name === name);
    const facts = worker
      ? [["role", worker.role], ["doing", worker.state], ["weights", worker.version || "–"], ["process", worker.pid ?? "–"], ["node", worker.node || "–"], ["restarts", worker.restarts], ["log", `logs/${name}.log`]]
      : [["state", words?.gone ? "has left" : "is dead"], ["log", `logs/${name}.log`]];
    this.dialog.replaceChildren(
      make("h2", { id: "ask-title" }, name),
      make("dl", {}, facts.map(([term, value]) => [make("dt", {}, term), make("dd", {}, String(value))])),
      words ? make("h3", {}, `Last words, ${clock(words.time)}`) : "",
      words ? make("pre", {}, words.message || "none") : "",
      make("form", { method: "dialog", class: "buttons" }, make("button", { class: "btn btn-primary" }, "Close")),
    );
    this.dialog.showModal();
  }
}

function flightOf(worker) {
  const tokens = worker.tokens_in_flight;
  return tokens ? `${worker.in_flight} · ${short(tokens)} tok` : String(worker.in_flight);
}

/** One line of the table, changed only where it differs. */
class Row {
  constructor(open, remove) {
    this.name = make("button", { type: "button", class: "link" });
    this.name.addEventListener("click", open);
    this.dot = make("i");
    this.cells = { state: make("td", { class: "state" }), version: make("td", { class: "num" }), flight: make("td", { class: "num" }), rate: make("td", { class: "num" }) };
    this.remove = make("button", { type: "button", class: "btn remove" }, "×");
    this.remove.addEventListener("click", remove);
    this.again = make("small");
    this.element = make("tr", {}, make("th", { scope: "row" }, this.dot, this.name, this.again), ...Object.values(this.cells), make("td", { class: "act" }, this.remove));
  }

  fill(values) {
    set(this.name, values.name);
    this.dot.className = `lane-${values.tone}`;
    for (const [name, cell] of Object.entries(this.cells)) set(cell, values[name]);
    this.cells.state.title = values.state;
    this.element.className = values.tone === "dead" ? (values.gone ? "gone" : "dead") : "";
    this.element.title = values.hint;
    set(this.again, values.restarts ? ` ↻${values.restarts}` : "");
    this.remove.hidden = !values.removable;
    this.remove.title = `Let ${values.name} part with its work and leave`;
    this.remove.setAttribute("aria-label", this.remove.title);
  }
}

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
