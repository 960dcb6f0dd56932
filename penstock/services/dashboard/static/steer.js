// The buttons: what is asked of the run, what it answered.

import { command } from "./api.js";
import { make } from "./format.js";

/** Whether the run can be asked for anything now. */
export function steerable(facts) {
  return facts.alive && ["training", "evaluating"].includes(facts.view?.phase);
}

/** Seconds after which a number that was asked for and has not come about is no longer shown. */
const PATIENCE = 120;

/** How many actors of a role there are, with a button for one less and one for one more. */
class Stepper {
  /** The last `least` cannot be let go. */
  constructor(steer, { role, noun, word, least }) {
    this.steer = steer;
    this.role = role;
    this.least = least;
    this.number = 0;
    this.wanted = null;
    this.fewer = steer.button("−", `One ${noun} less`, () => this.ask(-1), "step");
    this.count = make("output", { "aria-label": `${noun}s`.replace(/^./, (letter) => letter.toUpperCase()) }, "0");
    this.more = steer.button("+", `One ${noun} more`, () => this.ask(+1), "step");
    this.element = make("span", { class: "workers", title: `${noun}s` }, make("span", { "aria-hidden": "true" }, word), this.fewer, this.count, this.more);
  }

  show(workers, able) {
    const there = workers.filter((worker) => worker.role === this.role && worker.state !== "leaving").length;
    if (this.wanted !== null && (there === this.wanted || Date.now() > this.wantedUntil)) this.wanted = null;
    this.number = this.wanted ?? there;
    set(this.count, String(this.number));
    this.fewer.disabled = !able || this.number <= this.least;
  }

  ask(by) {
    const count = Math.max(this.least, this.number + by);
    this.number = this.wanted = count;
    this.wantedUntil = Date.now() + 1000 * PATIENCE;
    set(this.count, String(count));
    return this.steer.ask({ type: "scale", role: this.role, count }, by > 0 ? this.more : this.fewer, () => (this.wanted = null));
  }
}

export class Steer {
  constructor() {
    this.group = document.getElementById("steer");
    this.toasts = document.getElementById("toasts");
    this.dialog = document.getElementById("ask");
    this.paused = false;
    this.held = false;
    this.coefficients = {};
    this.workers = new Stepper(this, { role: "rollout", noun: "rollout worker", word: "workers", least: 0 });
    /** Shown beside the actors: there is no room for it in the head. */
    this.scorers = new Stepper(this, { role: "scorer", noun: "scorer", word: "scorers", least: 1 });
    this.pause = this.button("Pause", "No new groups and no new train steps until it goes on", () => this.ask({ type: this.paused ? "resume" : "pause" }, this.pause));
    this.gate = this.button("Close gate", "No new prompts; what is stored is trained on", () => this.ask({ type: "gate", open: this.held }, this.gate));
    this.checkpoint = this.button("Checkpoint", "Write a checkpoint at the end of this step", () => this.ask({ type: "checkpoint" }, this.checkpoint));
    this.tune = this.button("Tune…", "Change the KL coefficient, the learning rate, …", () => this.openTune());
    this.stop = this.button("Stop…", "End the run after this step, with a checkpoint and a summary", () => this.openStop(), "danger");
    this.group.append(
      this.workers.element,
      this.pause,
      this.gate,
      this.checkpoint,
      this.tune,
      this.stop,
    );
    this.able = null;
  }

  button(text, hint, act, kind = "") {
    const element = make("button", { type: "button", class: `btn ${kind}`, title: hint, "aria-label": kind === "step" ? hint : null }, text);
    element.dataset.hint = hint;
    element.addEventListener("click", act);
    return element;
  }

  /** What the run is doing now, so that the buttons say what they would change. */
  show(facts) {
    const view = facts.view;
    const able = steerable(facts);
    const controls = view?.controls ?? {};
    this.paused = Boolean(controls.paused_by);
    this.held = controls.gate_open === false;
    this.coefficients = controls.coefficients ?? {};
    set(this.pause, this.paused ? "Resume" : "Pause");
    set(this.gate, this.held ? "Open gate" : "Close gate");
    this.pause.classList.toggle("on", this.paused);
    this.gate.classList.toggle("on", this.held);
    if (able !== this.able) {
      this.able = able;
      const why = facts.alive ? `the run is ${view?.phase ?? "starting"}` : "the run has ended";
      for (const each of [...this.group.querySelectorAll("button"), this.scorers.fewer, this.scorers.more]) {
        each.disabled = !able;
        each.title = able ? each.dataset.hint : `${each.dataset.hint} – not now: ${why}`;
      }
    }
    for (const stepper of [this.workers, this.scorers]) stepper.show(view?.workers ?? [], able);
  }

  remove(name) {
    return this.ask({ type: "remove", name });
  }

  /** Send a command; say what came of it. */
  async ask(asked, button = null, undo = () => {}) {
    button?.setAttribute("aria-busy", "true");
    try {
      this.toast(await command(asked), "done");
      return true;
    } catch (error) {
      undo();
      this.toast(error.message, "refused");
      return false;
    } finally {
      button?.removeAttribute("aria-busy");
    }
  }

  toast(text, kind) {
    const close = make("button", { type: "button", class: "btn-close", "aria-label": "Close" });
    const element = make("div", { class: `note ${kind}` }, make("span", {}, text), close);
    const gone = setTimeout(() => element.remove(), kind === "done" ? 6000 : 15000);
    close.addEventListener("click", () => {
      clearTimeout(gone);
      element.remove();
    });
    this.toasts.append(element);
    while (this.toasts.children.length > 4) this.toasts.firstChild.remove();
  }

  openStop() {
    this.dialog.replaceChildren(
      make("h2", { id: "ask-title" }, "Stop the run?"),
      make("p", {}, "It ends after the step that is under way, with a checkpoint and a summary; penstock resume goes on from there."),
      this.buttons("Stop the run", "btn-danger", () => this.ask({ type: "stop", why: "asked for on the page" }, this.stop)),
    );
    this.dialog.showModal();
  }

  openTune() {
    const rank = (name) => ["kl.coefficient", "learning_rate", "max_lag"].indexOf(name) >>> 0;
    const names = Object.keys(this.coefficients).sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
    const fields = names.map((name) => {
      const value = this.coefficients[name];
      const input = make("input", { class: "form-control form-control-sm", id: `set-${name}`, inputmode: "decimal", autocomplete: "off", placeholder: plain(value) });
      input.dataset.name = name;
      return make("div", { class: "field" }, make("label", { for: `set-${name}` }, name), input, make("span", { class: "form-text" }, `now ${plain(value)}`));
    });
    if (names.length === 0) fields.push(make("p", {}, "The learner has not begun yet."));
    const apply = async () => {
      for (const input of this.dialog.querySelectorAll("input[data-name]")) {
        if (input.value.trim() === "") continue;
        const value = Number(input.value);
        const name = input.dataset.name;
        if (!Number.isFinite(value)) this.toast(`${name}: ${input.value} is no number`, "refused");
        else await this.ask(name === "max_lag" ? { type: "max_lag", bound: value } : { type: "set", name, value }, this.tune);
      }
    };
    this.dialog.replaceChildren(
      make("h2", { id: "ask-title" }, "Change coefficients"),
      make("p", {}, "From the next step on. What is left empty stays as it is."),
      ...fields,
      this.buttons("Apply", "btn-primary", apply),
    );
    this.dialog.showModal();
  }

  buttons(text, kind, act) {
    const form = make(
      "form",
      { method: "dialog", class: "buttons" },
      make("button", { class: "btn btn-outline-secondary", value: "no", type: "submit", formnovalidate: true }, "Cancel"),
      make("button", { class: `btn ${kind}`, value: "yes", type: "submit" }, text),
    );
    form.addEventListener("submit", (event) => {
      if (event.submitter?.value === "yes") act();
    });
    this.dialog.onkeydown = (event) => {
      if (event.key === "Enter" && event.target.matches("input")) {
        event.preventDefault();
        this.dialog.close();
        act();
      }
    };
    return form;
  }
}

function plain(value) {
  return String(Number(value.toPrecision(4)));
}

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
