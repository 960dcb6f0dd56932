// The metrics that the page has: curves in buckets of steps, mended by what each answer of the server brings.

export class Series {
  constructor() {
    this.clear();
  }

  clear() {
    this.revision = null;
    this.width = 0;
    this.first = [];
    this.last = [];
    this.time = [];
    this.lineage = [];
    /** Name to [means, smallest, largest]; the latter two only where a bucket has several steps. */
    this.values = new Map();
    this.seen = new Map();
  }

  /** Take in an answer. True when anything that is drawn has changed. */
  merge(look) {
    if (look.revision !== this.revision) this.revision = look.revision;
    if (look.begin === null) return false;
    if (look.width !== this.width) {
      this.clear();
      this.revision = look.revision;
      this.width = look.width;
    }
    let keep = this.first.length;
    while (keep > 0 && this.first[keep - 1] >= look.begin) keep--;
    for (const name of ["first", "last", "time", "lineage"]) this[name] = this[name].slice(0, keep).concat(look[name]);
    for (const name of new Set([...this.values.keys(), ...Object.keys(look.values)])) {
      const before = this.values.get(name);
      const more = look.values[name];
      const kinds = (more ?? before).length;
      const joined = [];
      for (let kind = 0; kind < kinds; kind++) {
        const old = before ? before[kind].slice(0, keep) : new Array(keep).fill(null);
        joined.push(old.concat(more ? more[kind] : new Array(look.first.length).fill(null)));
      }
      this.values.set(name, joined);
    }
    return true;
  }

  get length() {
    return this.last.length;
  }

  /** Names that a pattern means; `*` stands for any part of one. */
  match(pattern) {
    if (!pattern.includes("*")) return this.values.has(pattern) ? [pattern] : [];
    const parts = pattern.split("*").map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    const whole = new RegExp(`^${parts.join("(.+)")}$`);
    return [...this.values.keys()].filter((name) => whole.test(name)).sort();
  }

  means(name) {
    return this.values.get(name)?.[0] ?? [];
  }

  /** The newest value; null when there is none. */
  newest(name) {
    const means = this.means(name);
    for (let at = means.length - 1; at >= 0; at--) if (means[at] !== null) return means[at];
    return null;
  }
}

/** Buckets of lag in their order, with what people call them. */
export const LAGS = [
  ["lag_0", "0"],
  ["lag_1", "1"],
  ["lag_2", "2"],
  ["lag_3_4", "3–4"],
  ["lag_5_8", "5–8"],
  ["lag_9_up", "9+"],
  ["older_kv", "old KV"],
];

const MIDDLES = [0, 1, 2, 3.5, 6.5, 10];

/** Where a lag of so many steps lies on an axis of these buckets; whole numbers are their middles. */
export function lagPlace(lag) {
  const above = MIDDLES.findIndex((middle) => lag <= middle);
  if (above <= 0) return above === 0 ? lag : MIDDLES.length - 1;
  const below = MIDDLES[above - 1];
  return above - 1 + (lag - below) / (MIDDLES[above] - below);
}

/** The row of the largest lag that a bound admits. */
export function lagRow(lag) {
  return lag <= 2 ? lag : lag <= 4 ? 3 : lag <= 8 ? 4 : 5;
}
