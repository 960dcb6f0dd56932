// Two runs side by side: this one and another one in its folder.
//
//   mount(element, api)   api.get(path, params) → promise of JSON; api.plot(element, {series: [{label, x, y}], xlabel, ylabel})

const PLOTS = 4;
const FIRST = [
  ['eval/sampled/accuracy', 'reward/solved', 'reward/mean'],
  ['reward/mean', 'actor/entropy'],
  ['kl/reference', 'kl/offpolicy'],
  ['off_policy/mean', 'rollout_corr/ess'],
];
const OVER = { steps: 'train steps', tokens: 'tokens trained on', seconds: 'seconds of training' };
const NOTHING = '–';

/** Builds the comparison inside `element`; returns what takes it down again. */
export function mount(element, api) {
  const view = new Comparison(element, api);
  view.start();
  return { destroy: () => view.destroy(), show: (run) => view.show(run) };
}

function make(tag, { text, title, children, on, ...attributes } = {}) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, '');
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value);
  }
  if (text !== undefined) made.textContent = text;
  if (title) made.title = title;
  for (const [event, listener] of Object.entries(on ?? {})) made.addEventListener(event, listener);
  made.append(...(children ?? []));
  return made;
}

/** A figure as people read it: digits in groups when it is large, four of them when it is not whole. */
export function shown(value, unit = '') {
  if (value === null || value === undefined) return NOTHING;
  if (typeof value !== 'number') return String(value);
  const size = Math.abs(value);
  let text;
  if (Number.isInteger(value) || size >= 1e4) text = Math.round(value).toLocaleString('en-US');
  else if (size !== 0 && size < 1e-3) text = value.toExponential(2);
  else text = String(Number(value.toPrecision(4)));
  return `${text.replace('-', '−')}${unit ? ` ${unit}` : ''}`;
}

/** A value of a run file, in its spelling. */
export function spelled(value, isThere) {
  if (!isThere) return 'not there';
  if (value === null) return 'null';
  return typeof value === 'string' ? value : JSON.stringify(value);
}

/** How much larger b is than a, where that says anything. */
export function change(a, b) {
  if (typeof a !== 'number' || typeof b !== 'number' || a === b) return '';
  if (a === 0 || Math.sign(a) !== Math.sign(b)) return '';
  const ratio = b / a;
  return ratio >= 10 || ratio <= 0.1 ? `× ${Number(ratio.toPrecision(2))}` : `${ratio > 1 ? '+' : '−'}${Math.abs(100 * (ratio - 1)).toPrecision(2)} %`;
}

class Comparison {
  constructor(element, api) {
    this.root = element;
    this.api = api;
    this.asked = 0;
    this.run = null;
    this.over = 'steps';
    this.metrics = [];
    this.chosen = [];
  }

  start() {
    this.build();
    this.loadRuns();
  }

  destroy() {
    this.asked += 1;
    this.root.replaceChildren();
  }

  build() {
    this.runBox = make('select', { 'aria-label': 'the other run', on: { change: () => this.show(this.runBox.value) } });
    this.again = make('button', { type: 'button', text: 'read again', title: 'both runs may be going on', on: { click: () => this.run && this.show(this.run) } });
    this.overBox = make('select', {
      'aria-label': 'curves over',
      children: Object.entries(OVER).map(([value, text]) => make('option', { value, text: `over ${text}` })),
      on: { change: () => { this.over = this.overBox.value; this.drawPlots(); } },
    });
    this.problem = make('p', { class: 'co-problem', role: 'alert', hidden: true });
    this.plots = make('div', { class: 'co-plots' });
    this.figures = make('div');
    this.differences = make('div');
    this.body = make('div', { hidden: true, children: [
      this.plots,
      make('div', { class: 'co-tables', children: [
        make('section', { children: [make('h3', { text: 'What came of them' }), this.figures] }),
        make('section', { children: [make('h3', { text: 'What differs in the run files' }), this.differences] }),
      ] }),
    ] });
    this.root.replaceChildren(make('section', { class: 'compare', children: [
      make('div', { class: 'co-bar', children: [make('label', { children: [make('span', { text: 'this run and ' }), this.runBox] }), this.overBox, this.again] }),
      this.problem,
      this.body,
    ] }));
  }

  say(problem) {
    this.problem.textContent = problem ?? '';
    this.problem.hidden = !problem;
  }

  async ask(path, params, turn) {
    try {
      const found = await this.api.get(`compare/${path}`, params);
      return turn === this.asked ? found : null;
    } catch (error) {
      if (turn === this.asked) this.say(error.message ?? String(error));
      return null;
    }
  }

  async loadRuns() {
    const turn = (this.asked += 1);
    const runs = await this.ask('runs', {}, turn);
    if (!runs) return;
    this.runBox.replaceChildren(...runs.map(({ name, state, step }) => make('option', { value: name, text: `${name} (${state}, step ${step})` })));
    this.again.disabled = !runs.length;
    if (runs.length) await this.show(runs[0].name);
    else this.say('There is no other run in this run’s folder.');
  }

  async show(run) {
    const turn = (this.asked += 1);
    this.run = run;
    this.runBox.value = run;
    const found = await this.ask('with', { run }, turn);
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
    const taken = new Set();
    const pick = (wanted) => {
      const name = wanted.find((each) => this.metrics.includes(each) && !taken.has(each)) ?? this.metrics.find((each) => !taken.has(each));
      taken.add(name);
      return name;
    };
    const kept = this.chosen.filter((name) => this.metrics.includes(name));
    this.chosen = kept.length ? kept : FIRST.slice(0, Math.min(PLOTS, this.metrics.length)).map(pick);
    this.plots.replaceChildren(...this.chosen.map((name, place) => this.plotBox(name, place)));
  }

  plotBox(name, place) {
    const box = make('select', {
      'aria-label': `metric of plot ${place + 1}`,
      children: this.metrics.map((each) => make('option', { value: each, text: each, selected: each === name })),
      on: { change: () => { this.chosen[place] = box.value; this.drawPlot(place, this.asked); } },
    });
    return make('figure', { class: 'co-plot', children: [make('figcaption', { children: [box] }), make('div', { class: 'co-canvas' })] });
  }

  drawPlots() {
    const turn = this.asked;
    return Promise.all(this.chosen.map((_, place) => this.drawPlot(place, turn)));
  }

  async drawPlot(place, turn) {
    const [metric, over] = [this.chosen[place], this.over];
    const found = await this.ask('curves', { run: this.run, metric, over }, turn);
    if (!found || metric !== this.chosen[place] || over !== this.over) return;
    const host = this.plots.children[place].querySelector('.co-canvas');
    host.replaceChildren();
    this.api.plot(host, { series: found.series, xlabel: OVER[over], ylabel: metric });
  }

  // --- tables -------------------------------------------------------------------------------------

  head(found, ...more) {
    return make('thead', { children: [make('tr', { children: ['', found.a, found.b, ...more].map((text) => make('th', { text, scope: 'col' })) })] });
  }

  drawFigures(found) {
    const body = make('tbody');
    let group = '';
    for (const figure of found.figures) {
      if (figure.group !== group) body.append(make('tr', { class: 'co-group', children: [make('th', { text: figure.group, colspan: 4, scope: 'rowgroup' })] }));
      group = figure.group;
      body.append(make('tr', { children: [
        make('th', { text: figure.name, scope: 'row' }),
        make('td', { text: shown(figure.a, figure.unit) }),
        make('td', { text: shown(figure.b, figure.unit) }),
        make('td', { class: 'co-quiet', text: change(figure.a, figure.b) }),
      ] }));
    }
    this.figures.replaceChildren(make('table', { children: [this.head(found, ''), body] }));
  }

  drawDifferences(found) {
    if (!found.differences.length) {
      this.differences.replaceChildren(make('p', { class: 'co-quiet', text: 'Nothing: the run files are the same.' }));
      return;
    }
    const rows = found.differences.map(({ key, a, b, only }) => make('tr', { children: [
      make('th', { text: key, scope: 'row' }),
      make('td', { text: spelled(a, only !== 'b'), class: only === 'b' ? 'co-quiet' : undefined }),
      make('td', { text: spelled(b, only !== 'a'), class: only === 'a' ? 'co-quiet' : undefined }),
    ] }));
    this.differences.replaceChildren(make('table', { children: [this.head(found), make('tbody', { children: rows })] }));
  }
}
