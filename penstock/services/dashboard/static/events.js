// The run's events: the newest in the foot of the page, all of them in a dialog.

import { clock, make, whole } from "./format.js";

export class Events {
  constructor() {
    this.entries = [];
    this.number = 0;
    this.button = document.getElementById("newest");
    this.dialog = document.getElementById("log");
    this.filter = make("input", { type: "search", class: "form-control form-control-sm", placeholder: "Filter: a kind, a name, a word", "aria-label": "Filter the events" });
    this.list = make("ol", { class: "events", tabindex: "0", "aria-label": "Events, the newest first" });
    this.filter.addEventListener("input", () => this.fill());
    this.filter.addEventListener("keydown", (event) => {
      // A search field keeps Escape to itself, also when there is nothing to clear.
      if (event.key === "Escape" && this.filter.value === "") this.dialog.close();
    });
    this.dialog.append(
      make("div", { class: "dialog-head" }, make("h2", { id: "log-title" }, "Events"), this.filter, make("form", { method: "dialog" }, make("button", { class: "btn btn-primary" }, "Close"))),
      this.list,
    );
    this.button.addEventListener("click", () => this.open());
  }

  open() {
    if (this.dialog.open) return;
    this.fill();
    this.dialog.showModal();
  }

  /** Take in newer ones. */
  hear(entries) {
    if (entries.length === 0) return;
    this.entries = this.entries.concat(entries).slice(-2000);
    this.number = this.entries.at(-1).number;
    const newest = this.entries.at(-1);
    this.button.replaceChildren(make("i", { class: `kind ${newest.kind}` }), `${clock(newest.time)} `, make("b", {}, newest.kind), ` ${newest.message.split("\n")[0]}`);
    if (this.dialog.open) this.fill();
  }

  fill() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (entry) => words.every((word) => `${entry.kind} ${entry.message}`.toLowerCase().includes(word));
    const found = this.entries.filter(fits).slice(-300).reverse();
    this.list.replaceChildren(
      ...found.map((entry) => {
        const [head, ...rest] = entry.message.split("\n");
        const more = rest.length ? make("details", {}, make("summary", {}, "more"), make("pre", {}, rest.join("\n"))) : null;
        return make(
          "li",
          {},
          make("time", {}, clock(entry.time)),
          make("span", { class: "at" }, `step ${whole(entry.step)}`),
          make("span", { class: `kind ${entry.kind}` }, entry.kind),
          make("span", { class: "said" }, head, more),
        );
      }),
    );
    if (found.length === 0) this.list.append(make("li", { class: "empty" }, "no event fits"));
  }
}
