// The token inspector: pick a step and an answer, look at its tokens one by one.

import { make, whole } from "./format.js";
import { diverging, figure, NUMBERS, PAGE, plural, shownText, TokenView, versionColour } from "./tokens.js";

const MODES = [
  { name: "log_ratio", label: "log-ratio", low: "learner gives it less", high: "learner gives it more", unit: " nat" },
  { name: "version", label: "version" },
  { name: "advantages", label: "advantage", low: "worse than expected", high: "better than expected", unit: "" },
];
const SOURCES = { samples: "recording.samples", archive: "archive.every" };
const SIGNED = new Set(["log_ratio", "advantages", "token_rewards"]);
const SELDOM = new Set(["values", "returns", "logp_reference"]);
const HINT = "Point at a token, or move with the arrow keys: its numbers stand here. s and Shift+S go from weight swap to weight swap.";

/** Builds the inspector inside `element`; returns what takes it down again, and what goes to a place in it. */
export function mount(element, api) {
  const inspector = new Inspector(element, api);
  inspector.load();
  return { destroy: () => inspector.destroy(), show: (where) => inspector.show(where) };
}

class Inspector {
  constructor(element, api) {
    this.root = element;
    this.api = api;
    this.source = "samples";
    this.step = null;
    this.lineage = null;
    this.mode = "log_ratio";
    this.index = null;
    this.total = 0;
    this.asked = 0; // counts what was asked for; an answer to an older question is thrown away
    this.neighbours = [];
    this.view = null;
    this.build();
    this.forget = api.onTheme(() => this.onTheme());
    this.onTheme();
  }

  destroy() {
    this.asked += 1;
    this.forget();
    this.view?.destroy();
    this.root.replaceChildren();
  }

  /** Go to a place: {source, step, lineage, index}. */
  show({ source, step, lineage, index } = {}) {
    if (source) this.source = source;
    this.sourceBox.value = this.source;
    this.lineage = lineage ?? null;
    this.step = step ?? null;
    return this.load(index);
  }

  get theme() {
    return this.api.theme() === "dark" ? "dark" : "light";
  }

  onTheme() {
    this.box.dataset.theme = this.theme;
    this.view?.repaint();
    this.drawLegend();
  }

  // --- what is always there -----------------------------------------------------------------------

  build() {
    this.problem = make("p", { class: "in-problem", role: "alert", hidden: true });
    this.list = make("div", { class: "in-list", role: "listbox", "aria-label": "answers of the step", onkeydown: (event) => this.onListKey(event) });
    this.more = make("button", { type: "button", class: "btn small in-more", hidden: true, onclick: () => this.moreAnswers() });
    this.legend = make("div", { class: "in-legend" });
    this.promptText = make("pre");
    this.prompt = make("details", { class: "in-prompt", hidden: true }, make("summary", {}, "prompt"), this.promptText);
    this.facts = make("p", { class: "in-quiet in-facts" });
    this.tokens = make("div", { class: "in-tokens", tabindex: 0, role: "listbox", "aria-label": "tokens of the answer; arrow keys move, s goes to the next weight swap" });
    this.card = make("aside", { class: "in-card", "aria-live": "polite", "aria-label": "numbers of the token" });
    const left = make("div", { class: "in-left" }, this.list, this.more);
    const middle = make("div", { class: "in-middle" }, this.legend, this.prompt, this.facts, this.tokens);
    this.box = make("section", { class: "inspector" }, this.bar(), this.problem, make("div", { class: "in-main" }, left, middle, this.card));
    this.root.replaceChildren(this.box);
    this.showNumbers(null);
  }

  bar() {
    this.sourceBox = make(
      "select",
      { "aria-label": "where the answers come from", title: "samples: a few answers of most steps; archive: whole batches of some steps", onchange: () => this.show({ source: this.sourceBox.value, step: this.step }) },
      Object.keys(SOURCES).map((name) => make("option", { value: name }, name)),
    );
    const chosen = () => this.stepBox.value !== "" && this.show({ step: Number(this.stepBox.value) });
    this.stepBox = make("input", { type: "number", min: 0, step: 1, "aria-label": "step", class: "in-step", onchange: chosen });
    const walk = (text, label, direction) => make("button", { type: "button", class: "btn small", "aria-label": label, title: label, onclick: () => this.go(direction) }, text);
    this.before = walk("◀", "earlier step", -1);
    this.after = walk("▶", "later step", 1);
    const newest = make("button", { type: "button", class: "btn small", onclick: () => this.show() }, "newest");
    this.lineageBox = make("select", { "aria-label": "lineage", hidden: true, onchange: () => this.show({ step: this.step, lineage: Number(this.lineageBox.value) }) });
    this.range = make("span", { class: "in-quiet" });
    const steps = make("span", { class: "in-steps" }, "step", this.before, this.stepBox, this.after, newest, this.lineageBox);
    const modes = MODES.map(({ name, label }) => {
      const button = make("input", { type: "radio", name: "in-mode", value: name, checked: name === this.mode, onchange: () => this.paintBy(name) });
      return make("label", {}, button, make("span", {}, label));
    });
    return make("div", { class: "in-bar" }, this.sourceBox, steps, this.range, make("div", { class: "in-modes", role: "radiogroup", "aria-label": "colour tokens by" }, modes));
  }

  say(problem) {
    this.problem.textContent = problem ?? "";
    this.problem.hidden = !problem;
  }

  // --- steps and answers --------------------------------------------------------------------------

  /** What the API says, or null when something else was asked for meanwhile, or it failed, which is shown. */
  async ask(path, parameters, turn) {
    try {
      const found = await this.api.get(`inspector/${path}`, parameters);
      return turn === this.asked ? found : null;
    } catch (error) {
      if (turn === this.asked) this.say(error.message);
      return null;
    }
  }

  get where() {
    return { source: this.source, step: this.step, lineage: this.lineage };
  }

  async load(index = 0) {
    const turn = (this.asked += 1);
    const steps = await this.ask("steps", { source: this.source, limit: 200, near: this.step }, turn);
    if (!steps) return;
    this.neighbours = steps.steps;
    this.range.textContent = steps.total ? `${plural(steps.total, "step")} with answers, ${whole(steps.first)} to ${whole(steps.last)}` : "";
    this.step ??= steps.last;
    this.stepBox.value = this.step ?? "";
    this.clear();
    this.drawSteps();
    if (this.step === null) {
      this.say(`No step has answers in ${this.source} yet; ${SOURCES[this.source]} says of which steps they are kept.`);
      return;
    }
    const found = await this.ask("answers", this.where, turn);
    if (!found) return;
    this.say(null);
    this.lineage = found.lineage;
    this.total = found.total;
    this.drawSteps();
    this.addAnswers(found.answers);
    if (found.total) await this.choose(Math.min(index, found.total - 1));
    else this.say(`Step ${this.step} has no answers.`);
  }

  clear() {
    this.total = 0;
    this.list.replaceChildren();
    this.more.hidden = true;
    this.clearAnswer();
  }

  clearAnswer() {
    this.view?.destroy();
    this.view = null;
    this.index = null;
    this.tokens.replaceChildren();
    this.legend.replaceChildren();
    this.facts.textContent = "";
    this.prompt.hidden = true;
    this.showNumbers(null);
  }

  drawSteps() {
    const steps = this.neighbours.map(({ step }) => step);
    this.before.disabled = !steps.some((step) => step < this.step);
    this.after.disabled = !steps.some((step) => step > this.step);
    const lineages = this.neighbours.filter(({ step }) => step === this.step).map(({ lineage }) => lineage);
    this.lineageBox.hidden = lineages.length < 2;
    this.lineageBox.replaceChildren(...lineages.map((n) => make("option", { value: n, selected: n === this.lineage }, `lineage ${n}`)));
  }

  go(direction) {
    const steps = this.neighbours.map(({ step }) => step);
    const there = direction < 0 ? steps.findLast((step) => step < this.step) : steps.find((step) => step > this.step);
    if (there !== undefined) this.show({ step: there });
  }

  addAnswers(answers) {
    this.list.append(...answers.map((answer) => this.row(answer)));
    const left = this.total - this.list.childElementCount;
    this.more.hidden = left <= 0;
    this.more.textContent = `${whole(left)} more`;
  }

  async moreAnswers() {
    const found = await this.ask("answers", { ...this.where, offset: this.list.childElementCount }, this.asked);
    if (found) this.addAnswers(found.answers);
  }

  row(answer) {
    const reward = answer.reward === null ? "unscored" : `reward ${figure(answer.reward)}`;
    const size = [plural(answer.tokens, "token"), plural(new Set(answer.versions.map((v) => v.split(":")[0])).size, "version"), answer.finish];
    return make(
      "div",
      { class: "in-row", role: "option", tabindex: -1, "data-index": answer.index, "aria-selected": "false", title: answer.unscored, onclick: () => this.choose(answer.index) },
      make("div", { class: "in-row-head" }, make("strong", {}, reward), make("span", { class: "in-quiet" }, size.filter(Boolean).join(" · "))),
      make("div", { class: "in-row-prompt" }, answer.prompt),
      make("div", { class: "in-row-answer" }, answer.answer || "(empty)"),
    );
  }

  onListKey(event) {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const chosen = this.list.querySelector("[aria-selected=true]");
    const next = move > 0 ? chosen?.nextElementSibling : chosen?.previousElementSibling;
    if (!next) return;
    next.focus();
    this.choose(Number(next.dataset.index));
  }

  async choose(index) {
    const turn = (this.asked += 1);
    for (const row of this.list.children) {
      const chosen = Number(row.dataset.index) === index;
      row.setAttribute("aria-selected", String(chosen));
      row.tabIndex = chosen ? 0 : -1;
    }
    this.clearAnswer();
    this.index = index;
    const place = { ...this.where, index };
    const first = await this.ask("tokens", { ...place, start: 0, count: PAGE }, turn);
    if (!first) return;
    this.say(null);
    this.drawAbout(first);
    this.view = new TokenView(this, first, (start) => this.ask("tokens", { ...place, start, count: PAGE }, turn));
    this.drawLegend();
  }

  drawAbout({ about, prompt, length, begins_at }) {
    this.prompt.hidden = !prompt;
    this.promptText.textContent = prompt;
    const parts = Object.entries(about.parts).map(([name, value]) => `${name} ${figure(value)}`).join(", ");
    const member = about.member === null ? "" : `, answer ${about.member} of its group`;
    this.facts.textContent = [
      about.prompt_index === null ? "" : `prompt ${about.prompt_index}${member}`,
      about.source,
      plural(length, "token"),
      about.reward === null ? `unscored: ${about.unscored ?? ""}` : `reward ${figure(about.reward)}${parts ? ` (${parts})` : ""}`,
      about.worker,
      `trained from version ${begins_at}`,
    ].filter(Boolean).join(" · ");
  }

  // --- colours ------------------------------------------------------------------------------------

  paintBy(name) {
    this.mode = name;
    this.view?.repaint();
    this.drawLegend();
  }

  drawLegend() {
    if (!this.view) return;
    const mode = MODES.find(({ name }) => name === this.mode);
    const { scales, missing } = this.view.data;
    const parts = mode.name === "version" ? this.versionLegend() : this.scaleLegend(mode, scales[mode.name], missing[mode.name]);
    this.legend.replaceChildren(...parts, signs());
  }

  versionLegend() {
    const { versions, data } = this.view;
    const lags = new Map(data.spans.map((span) => [span.version, span.lag]));
    return versions.map((version, place) => {
      const chip = make("span", { class: "in-chip" }, `${version} · lag ${lags.get(version)}`);
      chip.style.backgroundColor = versionColour(place, versions.length, this.theme);
      return chip;
    });
  }

  scaleLegend({ label, low, high, unit }, scale, why) {
    if (!scale) return [make("span", { class: "in-quiet" }, why ? `no ${label}: ${why}` : `no ${label} but 0 is recorded`)];
    const bar = make("span", { class: "in-scale", "aria-hidden": "true" });
    for (let place = -10; place <= 10; place += 1) {
      const cell = make("i");
      cell.style.backgroundColor = diverging(place / 10, 1, this.theme);
      bar.append(cell);
    }
    return [
      make("span", {}, `${low} ${figure(-scale.typical)}`),
      bar,
      make("span", {}, `${figure(scale.typical, true)}${unit} ${high}`),
      make("span", { class: "in-quiet" }, `(largest ${figure(scale.largest)})`),
      ...(why ? [make("span", { class: "in-quiet" }, why)] : []),
    ];
  }

  // --- the numbers of one token -------------------------------------------------------------------

  showNumbers(token) {
    if (!token) {
      this.card.replaceChildren(make("p", { class: "in-quiet" }, HINT));
      return;
    }
    const { data } = this.view;
    const rows = [];
    const add = (term, value, title, quiet) => rows.push(make("dt", { title }, term), make("dd", { title, class: quiet ? "in-quiet" : null }, value));
    add("token", make("code", {}, shownText(token.text, token.id)));
    add("id", String(token.id));
    add("position", `${whole(token.at)} of ${whole(data.length)}`, "counted from 0 within the answer");
    add("sampled by", `version ${token.span.version}`, "the weights that drew it");
    add("lag", plural(token.span.lag, "step") + (token.span.older_kv ? ", cache in part by older weights" : ""), "train steps between sampling and training");
    for (const [name, label, title] of NUMBERS) {
      const value = token[name];
      if (value !== undefined) add(label, figure(value, SIGNED.has(name)), title);
      else if (data.missing[name] || !SELDOM.has(name)) add(label, "not recorded", data.missing[name] ?? title, true);
    }
    add("in the loss", token.fate, "whether the objective is a sum over this token");
    const notes = Object.entries(data.missing).map(([name, why]) => make("p", { class: "in-quiet" }, `${name}: ${why}`));
    this.card.replaceChildren(make("dl", {}, rows), ...notes);
  }
}

/** What the shapes of tokens mean, whatever their colour. */
function signs() {
  const sign = (name, text) => make("span", { class: `in-sign ${name}` }, text);
  return make("span", { class: "in-signs" }, sign("in-swap", "weight swap"), sign("not-counted", "not trained on"), sign("left-out", "left out"), sign("clipped", "clipped"));
}
