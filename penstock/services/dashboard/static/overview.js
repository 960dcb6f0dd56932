// The overview: five questions, and what answers them.

import { Chart } from "./charts.js";
import { Fleet } from "./fleet.js";
import { make, whole } from "./format.js";
import { LagMap } from "./heatmap.js";
import { Lanes } from "./lanes.js";
import { LAGS } from "./series.js";

/** Metrics that the overview draws, as the server is asked for them. */
export const SELECT = [
  "reward/mean",
  "reward/part/*",
  "reward/solved",
  "eval/sampled/accuracy",
  "eval/greedy/accuracy",
  "sft/loss",
  "kl/reference",
  "actor/entropy",
  "actor/pg_clipfrac_low",
  "actor/pg_clipfrac_high",
  "rollout_corr/ess",
  "off_policy/*",
  "kl/offpolicy/*/k3",
  "kl/staleness/*/k3",
  "kl/mismatch/*/k3",
  "rollout_corr/*/ess",
  "rollout_corr/*/mean",
  "rollout_corr/*/max",
  "dropped/*",
  "refused/*",
  "rollout/tokens_per_second",
  "learner/tokens_per_second",
  "ledger/stored",
  "ledger/queue_age",
];

function fixed(curves) {
  return (series) => curves.filter((curve) => series.values.has(curve.name));
}

const PART_COLOURS = ["line-2", "line-5", "line-6", "line-8", "line-3", "line-7"];

function parts(series) {
  const own = series.match("reward/part/*").map((name, index) => ({ name, label: name.slice("reward/part/".length), colour: PART_COLOURS[index % PART_COLOURS.length], width: 1.1 }));
  const mean = series.match("reward/mean").map((name) => ({ name, label: "reward", colour: "line-1", width: 2 }));
  const loss = series.match("sft/loss").map((name) => ({ name, label: "loss", colour: "line-1", width: 2 }));
  return [...mean, ...loss, ...(own.length > 1 ? own.slice(0, 6) : [])];
}

function heldOut(series) {
  const names = [...series.match("eval/sampled/accuracy"), ...series.match("eval/greedy/accuracy")];
  const own = names.map((name, index) => ({ name, label: name.split("/")[1], colour: `line-${index + 1}`, sparse: true, width: 2 }));
  const solved = series.match("reward/solved").map((name) => ({ name, label: "solved in training", colour: "line-7", width: 1 }));
  return [...own, ...solved];
}

function perLag(head, last) {
  return (series) =>
    LAGS.map(([bucket, label], index) => ({ name: `${head}/${bucket}/${last}`, label, colour: `lag-${index}`, width: 1.3, tag: true })).filter((curve) => series.values.has(curve.name));
}

const REASONS = { no_signal: "line-7", stale: "line-4", unscored: "line-3", nonfinite: "line-5", damaged: "line-6", no_tokens: "line-8" };

function dropped(series) {
  const found = [...series.match("dropped/*"), ...series.match("refused/*")].filter((name) => series.means(name).some((value) => value));
  return found.map((name, index) => {
    const [who, reason] = name.split("/");
    return { name, label: who === "refused" ? `${reason} (worker)` : reason, colour: REASONS[reason] ?? `line-${(index % 8) + 1}`, width: 1 };
  });
}

/** A card whose curves can be chosen. */
function choice(board, spec, kinds) {
  const select = make("select", { class: "form-select form-select-sm", "aria-label": `${spec.title}: which` }, kinds.map(([text], index) => make("option", { value: index }, text)));
  const chart = new Chart(board, { ...spec, options: select, curves: (series) => kinds[Number(select.value)][1](series), axis: spec.axis });
  select.addEventListener("change", () => {
    Object.assign(chart.spec, kinds[Number(select.value)][2] ?? {});
    chart.rebuild();
  });
  return chart;
}

function section(question, kind, ...cards) {
  return make("section", { class: `question ${kind}`, "aria-label": question }, make("h2", {}, question, make("span", { class: "beside" })), make("div", { class: "cards" }, cards.map((card) => card.element ?? card)));
}

export class Overview {
  constructor(board, { scorers, onRemove, onLaneSpan }) {
    this.board = board;
    this.lanes = new Lanes(onLaneSpan);
    this.fleet = new Fleet(scorers, onRemove);
    const chart = (spec) => new Chart(board, spec);
    this.queue = chart({
      title: "Queue",
      hint: "Groups that wait for the learner, and the age of the oldest in seconds",
      curves: fixed([
        { name: "ledger/queue_age", label: "oldest, s", colour: "line-4" },
        { name: "ledger/stored", label: "groups", colour: "line-7", width: 1 },
      ]),
      floor: 0,
      fromFloor: true,
    });
    this.element = make(
      "div",
      { class: "overview" },
      section(
        "Is it learning?",
        "learning",
        chart({ title: "Reward", hint: "Mean reward of scored answers, and of each rule", curves: parts }),
        chart({ title: "Held-out accuracy", hint: "Share of right answers to held-out prompts", curves: heldOut, floor: 0, ceiling: 1 }),
      ),
      section(
        "Is it safe?",
        "safe",
        chart({ title: "KL to reference", hint: "Nats per token, k3: how far the policy has gone from where it began", curves: fixed([{ name: "kl/reference", label: "nat", colour: "line-1" }]), floor: 0, empty: "no reference model in this run" }),
        chart({ title: "Entropy", hint: "Nats per token of the policy; a collapse is a policy that says one thing only", curves: fixed([{ name: "actor/entropy", label: "nat", colour: "line-2" }]), floor: 0 }),
        chart({
          title: "Clipped",
          hint: "Share of tokens whose gradient the lower or upper bound cut off",
          curves: fixed([
            { name: "actor/pg_clipfrac_low", label: "low", colour: "line-2" },
            { name: "actor/pg_clipfrac_high", label: "high", colour: "line-3" },
          ]),
          floor: 0,
        }),
        chart({ title: "ESS", hint: "Effective sample size of the importance weights, as a share of 1", curves: fixed([{ name: "rollout_corr/ess", label: "share", colour: "line-1" }]), ceiling: 1 }),
      ),
      section(
        "Is it fresh?",
        "fresh",
        new LagMap(board, { title: "Lag of trained tokens", hint: "Share of tokens by how many train steps old their weights were" }),
        choice(board, { title: "KL by lag", hint: "Nats per token between sampler and policy, by the lag of the token", floor: 0 }, [
          ["off-policy", perLag("kl/offpolicy", "k3")],
          ["staleness", perLag("kl/staleness", "k3")],
          ["mismatch", perLag("kl/mismatch", "k3")],
        ]),
        choice(board, { title: "Weights by lag", hint: "Importance weights, by the lag of the token", ceiling: 1 }, [
          ["ESS", perLag("rollout_corr", "ess"), { ceiling: 1 }],
          ["mean", perLag("rollout_corr", "mean"), { ceiling: undefined }],
          ["largest", perLag("rollout_corr", "max"), { ceiling: undefined }],
        ]),
        chart({ title: "Dropped", hint: "Groups per step that were not trained on, by reason", curves: dropped, stack: true, floor: 0, fromFloor: true, empty: "nothing dropped" }),
      ),
      section("Is it busy?", "busy", this.lanes, make("div", { class: "pair" }, this.rate(chart).element, this.queue.element)),
      section("Who is alive?", "alive", this.fleet),
    );
  }

  rate(chart) {
    return chart({
      title: "Tokens per second",
      hint: "Sampled by all workers, and trained on by the learner",
      curves: fixed([
        { name: "rollout/tokens_per_second", label: "sampled", colour: "line-2" },
        { name: "learner/tokens_per_second", label: "trained", colour: "line-1" },
      ]),
      floor: 0,
      fromFloor: true,
    });
  }

  /** Where the groups are that were ever issued. */
  showLedger(ledger) {
    if (!ledger) return;
    const states = ledger.by_state;
    const steps = ["reserved", "stored", "taken", "applied", "committed"].map((state) => `${state} ${whole(states[state])}`);
    const dropped = Object.entries(ledger.dropped).map(([reason, count]) => `${reason} ${whole(count)}`);
    const said = `issued ${whole(ledger.issued)} → ${steps.join(" → ")} · dropped ${whole(states.dropped)}`;
    const beside = this.element.querySelector(".busy .beside");
    if (beside.textContent !== said) beside.textContent = said;
    beside.title = `groups by state; dropped: ${dropped.join(", ") || "none"}; returned ${whole(states.returned)}`;
  }

  show(answer, asked, canSteer) {
    this.lanes.merge(answer, asked);
    this.lanes.draw();
    this.fleet.hear(answer.events);
    this.fleet.show(answer.status.facts, canSteer);
    this.showLedger(answer.status.facts.view?.ledger);
  }
}
