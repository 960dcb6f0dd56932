// The tokens of one answer, coloured, under pointer and keyboard.
//
// They lie in blocks of BLOCK; only blocks near the window hold elements, so an answer may have any length.

import { make, whole } from "./format.js";

const BLOCK = 256;
export const PAGE = 4 * BLOCK;
const PAGES_KEPT = 48;
const LEAP = 100;
const SETTLE = 1000;
const NEAR = "1200px 0px";
// As much of a colour as the text on it can bear: a contrast of 4.5 at least.
const STRONGEST = { light: 0.72, dark: 0.55 };
const OF_VERSION = { light: 0.45, dark: 0.38 };

const COLOURS = {
  light: { minus: [213, 94, 0], plus: [0, 114, 178] },
  dark: { minus: [255, 140, 50], plus: [66, 160, 230] },
};
// Viridis: ordered, and told apart also by people who see few colours.
const VERSIONS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

/** Columns that a token may have, with what they are called and what they mean. */
export const NUMBERS = [
  ["logp_sampler", "log μ", "log-prob under the sampler that drew it"],
  ["logp_learner", "log π", "log-prob under the learner at the start of the step (π_prox)"],
  ["log_ratio", "log π/μ", "log-ratio: 0 where sampler and learner agree"],
  ["importance", "π/μ", "importance weight"],
  ["trust_weights", "weight used", "what the correction made of it"],
  ["advantages", "advantage", "as the objective took it"],
  ["token_rewards", "reward", "what falls to this token"],
  ["values", "value", "what the value model expected"],
  ["returns", "return", "what the value model is taught"],
  ["logp_reference", "log π_ref", "log-prob under the frozen reference"],
];

export const plural = (n, word) => `${whole(n)} ${word}${n === 1 ? "" : "s"}`;
const rgba = ([r, g, b], alpha) => `rgba(${r}, ${g}, ${b}, ${alpha.toFixed(3)})`;

/** A number as people read it, with a sign where that says something. */
export function figure(value, signed = false) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  const text = size === 0 ? "0" : size < 1e-3 || size >= 1e5 ? size.toExponential(2) : String(Number(size.toPrecision(4)));
  return `${value < 0 ? "−" : signed && value > 0 ? "+" : ""}${text}`;
}

/** Background for a value on a scale from −full over 0, which has none, to +full; roots, so that small values show. */
export function diverging(value, full, theme) {
  if (value === null || value === undefined || !full || value === 0) return "";
  const strength = Math.sqrt(Math.min(1, Math.abs(value) / full));
  return rgba(COLOURS[theme][value < 0 ? "minus" : "plus"], STRONGEST[theme] * strength);
}

/** Background of the `place`-th of `of` versions, oldest first. */
export function versionColour(place, of, theme) {
  const at = of < 2 ? 2 : (place / (of - 1)) * (VERSIONS.length - 1);
  const low = Math.min(VERSIONS.length - 2, Math.floor(at));
  const mixed = VERSIONS[low].map((from, i) => Math.round(from + (VERSIONS[low + 1][i] - from) * (at - low)));
  return rgba(mixed, OF_VERSION[theme]);
}

/** What a token looks like on the page: line breaks and what would be invisible get a sign. */
export function shownText(text, id) {
  if (text === undefined || text === null) return `⟨${id}⟩`;
  if (text === "") return "▯";
  return text.replaceAll("\r", "␍").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
}

/** Draws into `inspector.tokens`; `first` is the first page of an answer, `fetchPage(start)` a promise of another. */
export class TokenView {
  constructor(inspector, first, fetchPage) {
    this.inspector = inspector;
    this.data = first;
    this.fetchPage = fetchPage;
    this.host = inspector.tokens;
    this.pages = new Map([[0, Promise.resolve(first)]]);
    this.focus = null;
    this.movedAt = -Infinity;
    this.versions = [...new Set(first.spans.map((span) => span.version))].sort(byVersion);
    this.swaps = first.spans.slice(1).map((span) => span.start);
    this.build();
    this.listen();
  }

  destroy() {
    this.gone = true;
    this.watcher.disconnect();
    this.listening.abort();
    this.host.replaceChildren();
    this.host.removeAttribute("aria-activedescendant");
  }

  // --- blocks -------------------------------------------------------------------------------------

  build() {
    this.blocks = [];
    let behind = 0;
    const parts = [];
    for (const [begin, end] of this.data.recorded) {
      if (begin > behind) parts.push(this.gap(behind, begin));
      for (let at = begin; at < end; at += BLOCK) {
        const block = { begin: at, end: Math.min(end, at + BLOCK), filled: false };
        block.element = make("div", { class: "in-block", "data-from": whole(at) });
        block.element.style.minHeight = `${this.guess(block)}px`;
        this.blocks.push(block);
        parts.push(block.element);
      }
      behind = end;
    }
    if (behind < this.data.length) parts.push(this.gap(behind, this.data.length));
    if (!this.data.length) parts.push(make("p", { class: "in-quiet" }, "The answer has no tokens."));
    this.host.replaceChildren(...parts);
    this.watcher = new IntersectionObserver((entries) => this.onSight(entries), { root: scroller(this.host), rootMargin: NEAR });
    for (const block of this.blocks) this.watcher.observe(block.element);
    this.listening = new AbortController();
  }

  gap(begin, end) {
    const swaps = this.swaps.filter((at) => at >= begin && at < end).length;
    const text = `… ${plural(end - begin, "token")} not recorded (recording.sample_tokens)${swaps ? `, with ${plural(swaps, "weight swap")}` : ""} …`;
    return make("p", { class: "in-gap" }, text);
  }

  /** Height of a block before it was ever drawn. */
  guess(block) {
    const perLine = Math.max(8, (this.host.clientWidth || 600) / 36);
    return Math.ceil((block.end - block.begin) / perLine) * 26;
  }

  onSight(entries) {
    for (const { target, isIntersecting } of entries) {
      const block = this.blocks.find(({ element }) => element === target);
      if (isIntersecting) this.fill(block);
      else if (block.filled) this.empty(block);
    }
  }

  empty(block) {
    if (this.focus !== null && block.begin <= this.focus && this.focus < block.end) return;
    block.element.style.minHeight = `${block.element.offsetHeight}px`;
    block.element.replaceChildren();
    block.filled = false;
  }

  async fill(block) {
    if (block.filled) return;
    block.filled = true;
    const tokens = await this.tokensBetween(block.begin, block.end);
    if (this.gone || !block.filled) return;
    const parts = [];
    for (const token of tokens) parts.push(...this.draw(token));
    block.element.replaceChildren(...parts);
    block.element.style.minHeight = "";
    if (this.focus !== null) this.mark(this.focus);
    // What is drawn above has another height than was guessed, and would push away the token that was just chosen.
    if (performance.now() - this.movedAt < SETTLE) this.element(this.focus)?.scrollIntoView({ block: "nearest" });
  }

  // --- data ---------------------------------------------------------------------------------------

  page(start) {
    if (!this.pages.has(start)) {
      if (this.pages.size >= PAGES_KEPT) this.pages.delete(this.pages.keys().next().value);
      this.pages.set(start, this.fetchPage(start));
    }
    return this.pages.get(start);
  }

  async tokensBetween(begin, end) {
    const found = [];
    for (let start = Math.floor(begin / PAGE) * PAGE; start < end; start += PAGE) {
      const page = await this.page(start);
      if (!page) {
        this.pages.delete(start);
        continue;
      }
      for (const stretch of page.stretches) {
        const last = Math.min(end, stretch.start + stretch.tokens.length);
        for (let at = Math.max(begin, stretch.start); at < last; at += 1) found.push(this.token(stretch, at));
      }
    }
    return found;
  }

  async tokenAt(at) {
    return (await this.tokensBetween(at, at + 1))[0];
  }

  /** Everything about the token at one place. */
  token(stretch, at) {
    const i = at - stretch.start;
    const token = { at, id: stretch.tokens[i], text: stretch.texts?.[i], marks: stretch.marks[i], span: this.spanAt(at) };
    for (const [name] of NUMBERS) if (stretch[name]) token[name] = stretch[name][i];
    token.fate = this.fate(token.marks);
    return token;
  }

  spanAt(at) {
    const { spans } = this.data;
    let low = 0;
    let high = spans.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (spans[middle].start <= at) low = middle;
      else high = middle - 1;
    }
    return spans[low];
  }

  has(marks, name) {
    return (marks & this.data.marks[name]) !== 0;
  }

  fate(marks) {
    if (!this.has(marks, "counts")) return this.has(marks, "action") ? "no: unscored, beyond the bound, or its filter is not known" : "no: not an action that counts";
    if (this.has(marks, "left_out")) return "no: left out by correction or rejection";
    const cut = [];
    if (this.has(marks, "weight_cut")) cut.push("weight cut at its bound");
    if (this.has(marks, "clipped_low")) cut.push("clipped below");
    if (this.has(marks, "clipped_high")) cut.push("clipped above");
    return cut.length ? `yes: ${cut.join(", ")}` : "yes";
  }

  // --- drawing ------------------------------------------------------------------------------------

  draw(token) {
    const parts = [];
    if (token.at > 0 && token.at === token.span.start) {
      const lag = plural(token.span.lag, "step");
      parts.push(make("span", { class: "in-swap", title: `weights swapped here to version ${token.span.version}, lag ${lag}` }, token.span.version));
    }
    const attributes = { class: `tk ${this.classes(token.marks)}`, id: `in-tk-${token.at}`, role: "option", "aria-selected": "false" };
    const element = make("span", attributes, shownText(token.text, token.id));
    element.token = token;
    this.paint(element);
    parts.push(element);
    if (token.text?.includes("\n")) parts.push(make("br"));
    return parts;
  }

  classes(marks) {
    const names = [];
    if (!this.has(marks, "counts")) names.push("not-counted");
    if (this.has(marks, "left_out")) names.push("left-out");
    if (["weight_cut", "clipped_low", "clipped_high"].some((name) => this.has(marks, name))) names.push("clipped");
    return names.join(" ");
  }

  paint(element) {
    const { mode, theme } = this.inspector;
    const { token } = element;
    element.style.backgroundColor = mode === "version"
      ? versionColour(this.versions.indexOf(token.span.version), this.versions.length, theme)
      : this.has(token.marks, "counts") || mode === "log_ratio"
        ? diverging(token[mode], this.data.scales[mode]?.typical, theme)
        : "";
  }

  repaint() {
    for (const element of this.host.querySelectorAll(".tk")) this.paint(element);
  }

  // --- pointer and keyboard -----------------------------------------------------------------------

  listen() {
    const { signal } = this.listening;
    const at = (event) => event.target.closest?.(".tk");
    this.host.addEventListener("pointerover", (event) => at(event) && this.inspector.showNumbers(at(event).token), { signal });
    this.host.addEventListener("pointerleave", () => this.back(), { signal });
    this.host.addEventListener("click", (event) => at(event) && this.moveTo(at(event).token.at), { signal });
    this.host.addEventListener("keydown", (event) => this.onKey(event), { signal });
    this.host.addEventListener("focus", () => this.focus === null && this.blocks.length && this.moveTo(this.blocks[0].begin), { signal });
  }

  /** The numbers of the token that has the focus, when the pointer has left. */
  async back() {
    if (this.focus === null) return;
    const token = await this.tokenAt(this.focus);
    if (!this.gone && token) this.inspector.showNumbers(token);
  }

  onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || !this.blocks.length) return;
    const here = this.focus ?? this.blocks[0].begin;
    const ends = [this.blocks[0].begin, this.blocks.at(-1).end - 1];
    const aims = {
      ArrowRight: () => this.step(here, 1),
      ArrowLeft: () => this.step(here, -1),
      ArrowDown: () => this.line(here, 1),
      ArrowUp: () => this.line(here, -1),
      PageDown: () => this.step(here, LEAP),
      PageUp: () => this.step(here, -LEAP),
      Home: () => ends[0],
      End: () => ends[1],
      s: () => this.swaps.find((at) => at > here && this.recorded(at)),
      S: () => this.swaps.filter((at) => at < here && this.recorded(at)).pop(),
    };
    const aim = aims[event.key]?.();
    if (aims[event.key]) event.preventDefault();
    if (aim !== undefined) this.moveTo(Math.min(ends[1], Math.max(ends[0], aim)));
  }

  recorded(at) {
    return this.data.recorded.some(([begin, end]) => begin <= at && at < end);
  }

  /** So many tokens on, over what is not recorded. */
  step(here, by) {
    const there = here + by;
    if (this.recorded(there)) return there;
    const { recorded } = this.data;
    return by > 0 ? (recorded.find(([begin]) => begin > here)?.[0] ?? recorded.at(-1)[1] - 1) : (recorded.filter(([, end]) => end <= here).at(-1)?.[1] ?? 1) - 1;
  }

  /** The token under or above this one, by where they stand on the page. */
  line(here, by) {
    const mine = this.element(here)?.getClientRects()[0];
    if (!mine) return this.step(here, by * 16);
    let best;
    let row = null;
    for (let at = here + by, looked = 0; looked < 2 * BLOCK; at += by, looked += 1) {
      const rect = this.element(at)?.getClientRects()[0];
      if (!rect) break;
      if (Math.abs(rect.top - mine.top) < mine.height / 2) continue;
      if (row !== null && Math.abs(rect.top - row) > mine.height / 2) break;
      row = rect.top;
      const apart = Math.abs(rect.left - mine.left);
      if (best === undefined || apart < best.apart) best = { at, apart };
    }
    return best?.at ?? this.step(here, by * 16);
  }

  element(at) {
    return this.host.querySelector(`#in-tk-${at}`);
  }

  async moveTo(at) {
    this.focus = at;
    this.movedAt = performance.now();
    const block = this.blocks.find(({ begin, end }) => begin <= at && at < end);
    await this.fill(block);
    const token = await this.tokenAt(at);
    if (this.gone || this.focus !== at || !token) return;
    this.mark(at);
    this.element(at)?.scrollIntoView({ block: "nearest" });
    this.inspector.showNumbers(token);
  }

  mark(at) {
    const before = this.host.querySelector(".in-here");
    before?.classList.remove("in-here");
    before?.setAttribute("aria-selected", "false");
    const element = this.element(at);
    if (!element) return;
    element.classList.add("in-here");
    element.setAttribute("aria-selected", "true");
    this.host.setAttribute("aria-activedescendant", element.id);
  }
}

/** What scrolls the element; null for the window. Margins count for that alone. */
function scroller(element) {
  for (let around = element.parentElement; around; around = around.parentElement) {
    if (["auto", "scroll"].includes(getComputedStyle(around).overflowY)) return around;
  }
  return null;
}

/** LINEAGE.STEP, oldest first. */
function byVersion(a, b) {
  const [one, other] = [a, b].map((text) => text.split(".").map(Number));
  return one[1] - other[1] || one[0] - other[0];
}
