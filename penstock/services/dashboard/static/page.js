// The page: asks the server once a second what is new, and has it shown.

import * as api from "./api.js";
import { Board, isExhausted, MARK_COLOURS } from "./charts.js";
import { Events } from "./events.js";
import { clock, duration, make, whole } from "./format.js";
import { Overview, SELECT } from "./overview.js";
import { plot } from "./plot.js";
import { Series } from "./series.js";
import { Steer, steerable } from "./steer.js";
import { onTheme, switchTheme, theme } from "./theme.js";

const PAUSE = 1000;
const PAUSE_ENDED = 5000;
const BUCKETS = 400;

const series = new Series();
const board = new Board(series);
const events = new Events();
const steer = new Steer();
const overview = new Overview(board, {
  scorers: steer.scorers.element,
  onRemove: (name) => steer.remove(name),
  onLaneSpan: () => wake(),
});
const parts = { inspector: null, compare: null, metrics: null };
let range = null;
/** Counts what was asked for; metrics that answer to an earlier question are thrown away. */
let asked = 0;
let ended = false;
let failures = 0;
let wake = () => {};
let runDir = "";

document.getElementById("overview").append(overview.element);

// --- asking -----------------------------------------------------------------------------------------

async function poll() {
  const lanesFrom = overview.lanes.from;
  const question = asked;
  const answer = await api.get("live", {
    select: [...SELECT, ...(parts.metrics?.select() ?? [])].join(","),
    buckets: BUCKETS,
    revision: series.revision,
    width: series.width,
    first: range?.[0],
    last: range?.[1],
    events: events.number,
    lanes_from: lanesFrom,
    lanes_span: overview.lanes.span,
    resolution: overview.lanes.resolution,
  });
  failures = 0;
  show(answer, lanesFrom, question);
}

/** Have the server tell all metrics anew: other ones are wanted, or other steps. */
function again() {
  asked++;
  series.revision = null;
  series.width = 0;
  wake();
}

async function follow() {
  for (;;) {
    const began = performance.now();
    const question = asked;
    if (!document.hidden) {
      try {
        await poll();
      } catch (error) {
        failures++;
        if (failures > 1) banner(`${error.message || "The server does not answer"}; trying again. A page that was served beside a run ends with it: penstock dashboard ${runDir || "RUN_DIR"}`, "lost");
      }
    }
    if (question !== asked && !failures) continue;
    const pause = failures ? Math.min(10_000, 1000 * failures) : ended ? PAUSE_ENDED : PAUSE;
    await new Promise((resolve) => {
      wake = resolve;
      setTimeout(resolve, Math.max(50, pause - (performance.now() - began)));
    });
  }
}

document.addEventListener("visibilitychange", () => wake());

// --- showing ----------------------------------------------------------------------------------------

function show(answer, lanesFrom, question) {
  const facts = answer.status.facts;
  if (runDir && facts.run_dir !== runDir) {
    location.reload(); // another run is served here now: nothing of the one before may stay
    return;
  }
  runDir = facts.run_dir;
  const changed = question === asked && series.merge(answer.metrics);
  if (answer.events.length) {
    events.hear(answer.events);
    board.marks = board.marks.concat(answer.events.filter((event) => event.kind in MARK_COLOURS)).slice(-1000);
  }
  const canSteer = steerable(facts);
  if (changed || answer.events.some((event) => event.kind in MARK_COLOURS)) {
    board.refresh();
  }
  overview.show(answer, lanesFrom, canSteer);
  steer.show(facts);
  head(answer);
  ended = !facts.alive;
  requestAnimationFrame(() => {
    if (!document.body.dataset.painted) performance.mark("painted");
    document.body.dataset.painted = String(series.last.at(-1) ?? 0);
  });
}

const TONES = { training: "good", evaluating: "good", finished: "calm", starting: "calm", draining: "calm", failed: "bad", stopped: "warn", paused: "warn" };

function head(answer) {
  const { verdict, facts } = answer.status;
  const view = facts.view;
  const name = view?.name || facts.run_dir.split("/").at(-1);
  text("name", name);
  document.getElementById("name").title = facts.run_dir;
  const phase = document.getElementById("phase");
  const lost = verdict.startsWith("died") || verdict.includes("silent");
  const paused = steerable(facts) && view.controls?.paused_by;
  text("phase", lost ? verdict.split(",")[0] : paused ? "paused" : (view?.phase ?? verdict.split(";")[0]));
  phase.className = `pill ${lost ? "bad" : paused ? "warn" : (TONES[view?.phase] ?? "calm")}`;
  phase.title = verdict;
  document.title = `${view ? `${whole(view.step)} · ` : ""}${name} · Penstock`;
  if (answer.damage) banner(answer.damage, "bad");
  else if (lost || view?.phase === "failed") banner(verdict, "bad");
  else if (!view && !facts.alive) banner(verdict, "quiet");
  else if (paused) banner(`Paused by ${paused}.`, "quiet");
  else if (view?.message && ["starting", "draining", "stopped"].includes(view.phase)) banner(view.message, "quiet");
  else banner("", "");
  text("reading", answer.read_share < 1 ? `reading the metrics, ${Math.floor(100 * answer.read_share)} %` : "");
  const track = document.getElementById("track");
  const total = view?.steps_total;
  track.hidden = !total;
  if (!view) return;
  const done = document.getElementById("done");
  const share = total ? Math.min(1, view.step / total) : 0;
  done.style.width = `${100 * share}%`;
  if (total) track.setAttribute("aria-valuemax", total);
  track.setAttribute("aria-valuenow", view.step);
  const gone = (facts.alive ? answer.at : view.at) - view.started;
  const left = view.time_left !== null && facts.alive ? `${duration(view.time_left)} left` : "";
  const steps = total ? `step ${whole(view.step)} of ${whole(total)}` : `step ${whole(view.step)}`;
  const where = [steps, left, `weights ${view.version}`, `${facts.alive ? "running" : "ran"} for ${duration(gone)}`].filter(Boolean).join(" · ");
  text("where", where); // what is worth most comes first: a small screen cuts it off
  document.getElementById("where").title = where;
}

function text(id, value) {
  const element = document.getElementById(id);
  if (element.textContent !== value) element.textContent = value;
}

function banner(words, kind) {
  const element = document.getElementById("banner");
  element.hidden = !words;
  element.className = kind;
  if (element.textContent !== words) element.textContent = words;
}

// --- the cursor and the range of steps ------------------------------------------------------------

board.onHover = (at, step, perPixel) => {
  if (at === null || at === undefined || step === null) {
    text("readout", "");
    return;
  }
  const mark = board.markNear(step, 4 * perPixel);
  const from = series.first[at];
  const to = series.last[at];
  const where = `step ${from === to ? whole(to) : `${whole(from)}–${whole(to)}`} · ${clock(series.time[at])}`;
  text("readout", mark ? `${where} · ${isExhausted(mark) ? "guard, exhausted" : mark.kind}: ${mark.message.split("\n")[0]}` : where);
};

board.onZoom = (wanted) => zoom(wanted);

function zoom(wanted) {
  range = wanted;
  const element = document.getElementById("range");
  element.replaceChildren();
  if (range) {
    const reset = make("button", { type: "button", class: "btn small", title: "All steps (Esc)" }, `steps ${whole(range[0])}–${whole(range[1])} ×`);
    reset.addEventListener("click", () => zoom(null));
    element.append(reset);
  }
  again();
}

// --- tabs, keys, theme ------------------------------------------------------------------------------

const tabs = [...document.querySelectorAll("[role=tab]")];

function choose(tab) {
  for (const each of tabs) {
    const chosen = each === tab;
    each.setAttribute("aria-selected", String(chosen));
    each.tabIndex = chosen ? 0 : -1;
    document.getElementById(each.getAttribute("aria-controls")).hidden = !chosen;
  }
  const name = tab.getAttribute("aria-controls");
  document.body.dataset.view = name;
  if (location.hash.slice(1) !== name) history.replaceState(null, "", name === "overview" ? "#" : `#${name}`);
  if (name in parts && parts[name] === null) load(name);
  else if (name === "metrics") again();
  board.refresh();
}

const OWN_STYLE = new Set(["inspector", "compare"]);

/** What another file draws, when it is asked for first. */
async function load(name) {
  const element = document.getElementById(name);
  try {
    const module = await import(`./${name}.js`);
    const sheet = make("link", { rel: "stylesheet", href: `/static/${name}.css` });
    const inside = make("div", { class: "part" });
    element.replaceChildren(inside);
    if (OWN_STYLE.has(name)) {
      document.head.append(sheet);
      await new Promise((resolve) => (sheet.onload = sheet.onerror = resolve)); // sizes count when it is drawn first
    }
    parts[name] = module.mount(inside, { get: api.get, theme, onTheme, plot, board, again }) ?? {};
  } catch (error) {
    element.replaceChildren(make("p", { class: "empty" }, `This part of the page could not be loaded: ${error.message}`));
  }
}

for (const tab of tabs) tab.addEventListener("click", () => choose(tab));
document.getElementById("tabs").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
  next.focus();
  choose(next);
});

const KEYS = [
  ["1 – 4", "overview, tokens, compare, metrics"],
  ["e", "all events"],
  ["t", "light or dark"],
  ["Esc", "all steps again; close what is open"],
  ["Tab", "from chart to chart and button to button"],
  ["← →", "on a chart: step by step; the other charts follow"],
  ["Home End", "on a chart: first and newest step"],
  ["Enter", "on a chart: enlarge it"],
  ["drag", "on a chart: look at these steps alone"],
  ["?", "this list"],
];
const help = document.getElementById("help");
help.append(
  make("h2", { id: "help-title" }, "Keys"),
  make("dl", {}, KEYS.map(([key, what]) => [make("dt", {}, make("kbd", {}, key)), make("dd", {}, what)])),
  make("form", { method: "dialog", class: "buttons" }, make("button", { class: "btn btn-primary" }, "Close")),
);

function keyed(key) {
  if (/^[1-4]$/.test(key)) return () => choose(tabs[Number(key) - 1]);
  if (key === "e") return () => events.open();
  if (key === "t") return switchTheme;
  if (key === "?") return () => help.showModal();
  if (key === "Escape" && range) return () => zoom(null);
  return null;
}

document.getElementById("theme").addEventListener("click", switchTheme);
document.getElementById("help-open").addEventListener("click", () => help.showModal());
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (document.querySelector("dialog[open]")) return;
  const act = keyed(event.key);
  if (!act) return;
  event.preventDefault(); // the key is not typed into what it opens
  act();
});

// --- begin ------------------------------------------------------------------------------------------

const wanted = tabs.find((tab) => tab.getAttribute("aria-controls") === location.hash.slice(1));
if (wanted) choose(wanted);
follow();
