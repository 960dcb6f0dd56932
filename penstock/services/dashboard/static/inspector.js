// The token inspector: pick a step and an answer, look at its tokens one by one.
//
//   mount(element, api)   api.get(path, params) → promise of JSON; api.theme() → 'light' | 'dark'
//
// Tokens lie in blocks of BLOCK; only blocks near the window hold elements, so an answer may have any length.

const BLOCK = 256;
const PAGE = 4 * BLOCK;
const PAGES_KEPT = 48;
const STRONGEST = 0.72;

const COLOURS = {
  light: { minus: [213, 94, 0], plus: [0, 114, 178] },
  dark: { minus: [255, 140, 50], plus: [66, 160, 230] },
};
// Viridis: ordered, and told apart also by people who see few colours.
const VERSIONS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

const MODES = [
  { name: 'log_ratio', label: 'log-ratio', low: 'learner gives it less', high: 'learner gives it more', unit: ' nat' },
  { name: 'version', label: 'version' },
  { name: 'advantages', label: 'advantage', low: 'worse than expected', high: 'better than expected', unit: '' },
];

const NUMBERS = [
  ['logp_sampler', 'log μ', 'log-prob under the sampler that drew it'],
  ['logp_learner', 'log π', 'log-prob under the learner at the start of the step (π_prox)'],
  ['log_ratio', 'log π/μ', 'log-ratio: 0 where sampler and learner agree'],
  ['importance', 'π/μ', 'importance weight'],
  ['trust_weights', 'weight used', 'what the correction made of it'],
  ['advantages', 'advantage', 'as the objective took it'],
  ['token_rewards', 'reward', 'what falls to this token'],
  ['values', 'value', 'what the value model expected'],
  ['returns', 'return', 'what the value model is taught'],
  ['logp_reference', 'log π_ref', 'log-prob under the frozen reference'],
];
const SIGNED = new Set(['log_ratio', 'advantages', 'token_rewards']);
const SELDOM = new Set(['values', 'returns', 'logp_reference']);

/** Builds the inspector inside `element`; returns what takes it down again. */
export function mount(element, api) {
  const inspector = new Inspector(element, api);
  inspector.start();
  return { destroy: () => inspector.destroy(), show: (where) => inspector.show(where) };
}

// --- small helpers --------------------------------------------------------------------------------

/** An element; text always goes in as text, so a token that reads like HTML stays a token. */
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

/** A number as people read it. */
export function figure(value, signed = false) {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  const size = Math.abs(value);
  let text = size === 0 ? '0' : size < 1e-3 || size >= 1e5 ? size.toExponential(2) : String(Number(size.toPrecision(4)));
  if (value < 0) text = `−${text}`;
  else if (signed && value > 0) text = `+${text}`;
  return text;
}

const count = (n) => n.toLocaleString('en-US');
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? '' : 's'}`;
const rgba = ([r, g, b], alpha) => `rgba(${r}, ${g}, ${b}, ${alpha.toFixed(3)})`;

/** Background for a value on a scale from −full over 0, which has none, to +full; roots, so that small values show. */
export function diverging(value, full, theme) {
  if (value === null || value === undefined || !full || value === 0) return '';
  const strength = Math.sqrt(Math.min(1, Math.abs(value) / full));
  return rgba(COLOURS[theme][value < 0 ? 'minus' : 'plus'], STRONGEST * strength);
}

/** Background of the `place`-th of `of` versions, oldest first. */
export function versionColour(place, of, theme) {
  const at = of < 2 ? 2 : (place / (of - 1)) * (VERSIONS.length - 1);
  const low = Math.min(VERSIONS.length - 2, Math.floor(at));
  const mixed = VERSIONS[low].map((from, i) => Math.round(from + (VERSIONS[low + 1][i] - from) * (at - low)));
  return rgba(mixed, theme === 'dark' ? 0.55 : 0.45);
}

/** What a token looks like on the page: line breaks and what would be invisible get a sign. */
export function shownText(text, id) {
  if (text === undefined || text === null) return `⟨${id}⟩`;
  if (text === '') return '▯';
  return text.replaceAll('\r', '␍').replaceAll('\n', '⏎').replaceAll('\t', '⇥');
}

// --- the inspector --------------------------------------------------------------------------------

class Inspector {
  constructor(element, api) {
    this.root = element;
    this.api = api;
    this.source = 'samples';
    this.step = null;
    this.lineage = null;
    this.mode = 'log_ratio';
    this.index = null;
    this.asked = 0; // counts what was asked for; an answer to an older question is thrown away
    this.neighbours = [];
    this.view = null;
  }

  start() {
    this.build();
    this.paintTheme = () => this.onTheme();
    this.themes = new MutationObserver(this.paintTheme);
    for (const place of [document.documentElement, document.body]) {
      this.themes.observe(place, { attributes: true, attributeFilter: ['class', 'data-theme', 'style'] });
    }
    this.scheme = window.matchMedia('(prefers-color-scheme: dark)');
    this.scheme.addEventListener('change', this.paintTheme);
    this.onTheme();
    this.load();
  }

  destroy() {
    this.asked += 1;
    this.themes.disconnect();
    this.scheme.removeEventListener('change', this.paintTheme);
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
    return this.api.theme() === 'dark' ? 'dark' : 'light';
  }

  onTheme() {
    if (this.box.dataset.theme === this.theme) return;
    this.box.dataset.theme = this.theme;
    this.view?.repaint();
    this.drawLegend();
  }

  // --- what is always there -----------------------------------------------------------------------

  build() {
    this.sourceBox = make('select', {
      'aria-label': 'where the answers come from',
      title: 'samples: a few answers of most steps; archive: whole batches of some steps',
      children: ['samples', 'archive'].map((name) => make('option', { value: name, text: name })),
      on: { change: () => this.show({ source: this.sourceBox.value, step: this.step }) },
    });
    this.stepBox = make('input', {
      type: 'number', min: 0, step: 1, 'aria-label': 'step', class: 'in-step',
      on: { change: () => this.stepBox.value !== '' && this.show({ step: Number(this.stepBox.value) }) },
    });
    this.before = make('button', { type: 'button', text: '◀', title: 'the step before that has answers', 'aria-label': 'earlier step', on: { click: () => this.go(-1) } });
    this.after = make('button', { type: 'button', text: '▶', title: 'the next step that has answers', 'aria-label': 'later step', on: { click: () => this.go(1) } });
    this.newest = make('button', { type: 'button', text: 'newest', on: { click: () => this.show({}) } });
    this.lineageBox = make('select', { 'aria-label': 'lineage', hidden: true, on: { change: () => this.show({ step: this.step, lineage: Number(this.lineageBox.value) }) } });
    this.range = make('span', { class: 'in-quiet' });
    this.modes = make('div', {
      class: 'in-modes', role: 'radiogroup', 'aria-label': 'colour tokens by',
      children: MODES.map(({ name, label }) => make('label', {
        children: [make('input', { type: 'radio', name: 'in-mode', value: name, checked: name === this.mode, on: { change: () => this.paintBy(name) } }), make('span', { text: label })],
      })),
    });
    this.problem = make('p', { class: 'in-problem', role: 'alert', hidden: true });
    this.list = make('div', { class: 'in-list', role: 'listbox', 'aria-label': 'answers of the step', on: { keydown: (event) => this.onListKey(event) } });
    this.more = make('button', { type: 'button', class: 'in-more', hidden: true, on: { click: () => this.moreAnswers() } });
    this.legend = make('div', { class: 'in-legend' });
    this.prompt = make('details', { class: 'in-prompt', children: [make('summary', { text: 'prompt' }), make('pre')] });
    this.facts = make('p', { class: 'in-quiet in-facts' });
    this.tokens = make('div', { class: 'in-tokens', tabindex: 0, role: 'listbox', 'aria-label': 'tokens of the answer; arrow keys move, s goes to the next weight swap' });
    this.card = make('aside', { class: 'in-card', 'aria-live': 'polite', 'aria-label': 'numbers of the token' });
    this.box = make('section', {
      class: 'inspector',
      children: [
        make('div', { class: 'in-bar', children: [this.sourceBox, make('span', { class: 'in-steps', children: [make('span', { text: 'step' }), this.before, this.stepBox, this.after, this.newest, this.lineageBox] }), this.range, this.modes] }),
        this.problem,
        make('div', { class: 'in-main', children: [
          make('div', { class: 'in-left', children: [this.list, this.more] }),
          make('div', { class: 'in-middle', children: [this.legend, this.prompt, this.facts, this.tokens] }),
          this.card,
        ] }),
      ],
    });
    this.root.replaceChildren(this.box);
    this.showNumbers(null);
  }

  say(problem) {
    this.problem.textContent = problem ?? '';
    this.problem.hidden = !problem;
  }

  // --- steps and answers --------------------------------------------------------------------------

  /** What the API says, or null when something else was asked for meanwhile, or it failed, which is shown. */
  async ask(path, params, turn) {
    try {
      const found = await this.api.get(`inspector/${path}`, params);
      return turn === this.asked ? found : null;
    } catch (error) {
      if (turn === this.asked) this.say(error.message ?? String(error));
      return null;
    }
  }

  async load(index = 0) {
    const turn = (this.asked += 1);
    const steps = await this.ask('steps', { source: this.source, limit: 200, ...(this.step === null ? {} : { near: this.step }) }, turn);
    if (!steps) return;
    this.neighbours = steps.steps;
    this.range.textContent = steps.total ? `${plural(steps.total, 'step')} with answers, ${steps.first} to ${steps.last}` : '';
    if (this.step === null) this.step = steps.last;
    this.stepBox.value = this.step ?? '';
    this.clear();
    if (this.step === null) {
      const key = this.source === 'samples' ? 'recording.samples' : 'archive.every';
      this.say(`No step has answers in ${this.source} yet; ${key} says of which steps they are kept.`);
      return;
    }
    const found = await this.ask('answers', this.where(), turn);
    if (!found) return;
    this.say(null);
    this.lineage = found.lineage;
    this.total = found.total;
    this.drawSteps();
    this.list.replaceChildren();
    this.addAnswers(found.answers);
    const wanted = Math.min(index, found.total - 1);
    if (found.total) await this.choose(wanted);
    else this.say(`Step ${this.step} has no answers.`);
  }

  where() {
    return { source: this.source, step: this.step, ...(this.lineage === null ? {} : { lineage: this.lineage }) };
  }

  clear() {
    this.view?.destroy();
    this.view = null;
    this.index = null;
    this.total = 0;
    this.list.replaceChildren();
    this.more.hidden = true;
    this.tokens.replaceChildren();
    this.legend.replaceChildren();
    this.facts.textContent = '';
    this.prompt.hidden = true;
    this.showNumbers(null);
  }

  drawSteps() {
    const steps = this.neighbours.map(({ step }) => step);
    this.before.disabled = !steps.some((step) => step < this.step);
    this.after.disabled = !steps.some((step) => step > this.step);
    const lineages = this.neighbours.filter(({ step }) => step === this.step).map(({ lineage }) => lineage);
    this.lineageBox.hidden = lineages.length < 2;
    this.lineageBox.replaceChildren(...lineages.map((n) => make('option', { value: n, text: `lineage ${n}`, selected: n === this.lineage })));
  }

  go(direction) {
    const steps = this.neighbours.map(({ step }) => step);
    const beyond = direction < 0 ? steps.filter((step) => step < this.step).pop() : steps.find((step) => step > this.step);
    if (beyond !== undefined) this.show({ step: beyond });
  }

  addAnswers(answers) {
    for (const answer of answers) this.list.append(this.row(answer));
    const shown = this.list.childElementCount;
    this.more.hidden = shown >= this.total;
    this.more.textContent = `${count(this.total - shown)} more`;
  }

  async moreAnswers() {
    const turn = this.asked;
    const found = await this.ask('answers', { ...this.where(), offset: this.list.childElementCount }, turn);
    if (found) this.addAnswers(found.answers);
  }

  row(answer) {
    const reward = answer.reward === null ? 'unscored' : figure(answer.reward);
    const head = make('div', { class: 'in-row-head', children: [
      make('strong', { text: `reward ${reward}` }),
      make('span', { class: 'in-quiet', text: [plural(answer.tokens, 'token'), plural(answer.versions.length, 'version'), answer.finish].filter(Boolean).join(' · ') }),
    ] });
    return make('div', {
      class: 'in-row', role: 'option', tabindex: -1, 'data-index': answer.index, 'aria-selected': 'false',
      title: answer.unscored ?? '',
      children: [head, make('div', { class: 'in-row-prompt', text: answer.prompt }), make('div', { class: 'in-row-answer', text: answer.answer || '(empty)' })],
      on: { click: () => this.choose(answer.index) },
    });
  }

  onListKey(event) {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const next = this.list.querySelector(`[data-index="${(this.index ?? 0) + move}"]`);
    if (next) {
      next.focus();
      this.choose(Number(next.dataset.index));
    }
  }

  async choose(index) {
    const turn = (this.asked += 1);
    this.index = index;
    for (const row of this.list.children) {
      const chosen = Number(row.dataset.index) === index;
      row.setAttribute('aria-selected', String(chosen));
      row.tabIndex = chosen ? 0 : -1;
    }
    this.view?.destroy();
    this.view = null;
    const first = await this.ask('tokens', { ...this.where(), index, start: 0, count: PAGE }, turn);
    if (!first) {
      if (turn === this.asked) {
        this.tokens.replaceChildren();
        this.legend.replaceChildren();
        this.facts.textContent = '';
        this.prompt.hidden = true;
        this.showNumbers(null);
      }
      return;
    }
    this.say(null);
    this.drawAbout(first);
    const params = { ...this.where(), index };
    this.view = new TokenView(this, first, (start) => this.ask('tokens', { ...params, start, count: PAGE }, turn));
    this.drawLegend();
    this.showNumbers(null);
  }

  drawAbout(first) {
    const { about } = first;
    this.prompt.hidden = !first.prompt;
    this.prompt.querySelector('pre').textContent = first.prompt;
    const parts = Object.entries(about.parts).map(([name, value]) => `${name} ${figure(value)}`);
    this.facts.textContent = [
      about.prompt_index === null ? null : `prompt ${about.prompt_index}` + (about.member === null ? '' : `, answer ${about.member} of its group`),
      about.source || null,
      plural(first.length, 'token'),
      about.reward === null ? `unscored: ${about.unscored ?? ''}` : `reward ${figure(about.reward)}` + (parts.length ? ` (${parts.join(', ')})` : ''),
      about.worker || null,
      `trained from version ${first.begins_at}`,
    ].filter(Boolean).join(' · ');
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
    const { data } = this.view;
    const parts = mode.name === 'version' ? this.versionLegend() : this.scaleLegend(mode, data.scales[mode.name], data.missing[mode.name]);
    this.legend.replaceChildren(...parts, this.signs());
  }

  versionLegend() {
    const { versions, data } = this.view;
    const lags = new Map(data.spans.map((span) => [span.version, span.lag]));
    return versions.map((version, place) => {
      const chip = make('span', { class: 'in-chip', text: `${version} · lag ${lags.get(version)}` });
      chip.style.backgroundColor = versionColour(place, versions.length, this.theme);
      return chip;
    });
  }

  scaleLegend(mode, scale, why) {
    if (!scale) return [make('span', { class: 'in-quiet', text: why ? `no ${mode.label}: ${why}` : `every ${mode.label} is 0 or not recorded` })];
    const bar = make('span', { class: 'in-scale', 'aria-hidden': 'true' });
    for (let place = -10; place <= 10; place += 1) {
      const cell = make('i');
      cell.style.backgroundColor = diverging((place / 10) * scale.typical, scale.typical, this.theme);
      bar.append(cell);
    }
    return [
      make('span', { text: `${mode.low} ${figure(-scale.typical)}` }), bar,
      make('span', { text: `${figure(scale.typical, true)}${mode.unit} ${mode.high}` }),
      make('span', { class: 'in-quiet', text: `(largest ${figure(scale.largest)})` }),
    ];
  }

  signs() {
    const of = (name, text) => make('span', { class: `in-sign ${name}`, text });
    return make('span', { class: 'in-signs', children: [
      make('span', { class: 'in-swap', 'data-version': '', text: 'weight swap' }), of('not-counted', 'not trained on'), of('left-out', 'left out'), of('clipped', 'clipped'),
    ] });
  }

  // --- the numbers of one token -------------------------------------------------------------------

  showNumbers(token) {
    if (!token) {
      this.card.replaceChildren(make('p', { class: 'in-quiet', text: 'Point at a token, or move with the arrow keys: its numbers stand here. s and Shift+s go from weight swap to weight swap.' }));
      return;
    }
    const { data } = this.view;
    const rows = [];
    const add = (term, text, title, quiet) => rows.push(make('dt', { text: term, title }), make('dd', { text, title, class: quiet ? 'in-quiet' : undefined }));
    rows.push(make('dt', { text: 'token' }), make('dd', { children: [make('code', { text: shownText(token.text, token.id) })] }));
    add('id', String(token.id));
    add('position', `${count(token.at)} of ${count(data.length)}`, 'counted from 0 within the answer');
    add('sampled by', `version ${token.span.version}`, 'the weights that drew it');
    add('lag', plural(token.span.lag, 'step') + (token.span.older_kv ? ', cache in part by older weights' : ''), 'train steps between sampling and training');
    for (const [name, label, title] of NUMBERS) {
      const value = token[name];
      if (value === undefined && SELDOM.has(name) && !data.missing[name]) continue;
      if (value === undefined) add(label, 'not recorded', data.missing[name] ?? title, true);
      else add(label, figure(value, SIGNED.has(name)), title);
    }
    add('in the loss', token.fate, 'whether the objective is a sum over this token');
    const notes = Object.entries(data.missing).map(([name, why]) => make('p', { class: 'in-quiet', text: `${name}: ${why}` }));
    this.card.replaceChildren(make('dl', { children: rows }), ...notes);
  }
}

// --- the tokens of one answer -----------------------------------------------------------------------

class TokenView {
  constructor(inspector, first, fetchPage) {
    this.inspector = inspector;
    this.data = first;
    this.fetchPage = fetchPage;
    this.host = inspector.tokens;
    this.pages = new Map([[0, Promise.resolve(first)]]);
    this.focus = null;
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
    this.host.removeAttribute('aria-activedescendant');
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
        block.element = make('div', { class: 'in-block', 'data-from': count(at) });
        block.element.style.minHeight = `${this.guess(block)}px`;
        this.blocks.push(block);
        parts.push(block.element);
      }
      behind = end;
    }
    if (behind < this.data.length) parts.push(this.gap(behind, this.data.length));
    if (!this.data.length) parts.push(make('p', { class: 'in-quiet', text: 'The answer has no tokens.' }));
    this.host.replaceChildren(...parts);
    this.watcher = new IntersectionObserver((entries) => this.onSight(entries), { rootMargin: '1200px 0px' });
    for (const block of this.blocks) this.watcher.observe(block.element);
    this.listening = new AbortController();
  }

  gap(begin, end) {
    const swaps = this.swaps.filter((at) => at >= begin && at < end).length;
    const text = `… ${plural(end - begin, 'token')} not recorded (recording.sample_tokens)${swaps ? `, with ${plural(swaps, 'weight swap')}` : ''} …`;
    return make('p', { class: 'in-gap', text });
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
    block.element.style.minHeight = '';
    if (this.focus !== null) this.mark(this.focus);
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
    if (!this.has(marks, 'counts')) return this.has(marks, 'action') ? 'no: unscored, beyond the bound, or its filter is not known' : 'no: not an action that counts';
    if (this.has(marks, 'left_out')) return 'no: left out by correction or rejection';
    const cut = [];
    if (this.has(marks, 'weight_cut')) cut.push('weight cut at its bound');
    if (this.has(marks, 'clipped_low')) cut.push('clipped below');
    if (this.has(marks, 'clipped_high')) cut.push('clipped above');
    return cut.length ? `yes: ${cut.join(', ')}` : 'yes';
  }

  // --- drawing ------------------------------------------------------------------------------------

  draw(token) {
    const parts = [];
    if (token.at > 0 && token.at === token.span.start) {
      const lag = plural(token.span.lag, 'step');
      parts.push(make('span', { class: 'in-swap', text: token.span.version, title: `weights swapped here to version ${token.span.version}, lag ${lag}` }));
    }
    const element = make('span', {
      class: `tk ${this.classes(token.marks)}`, id: `in-tk-${token.at}`, role: 'option', 'aria-selected': 'false', 'data-at': token.at,
      text: shownText(token.text, token.id),
    });
    element.token = token;
    this.paint(element);
    parts.push(element);
    if (token.text?.includes('\n')) parts.push(make('br'));
    return parts;
  }

  classes(marks) {
    const names = [];
    if (!this.has(marks, 'counts')) names.push('not-counted');
    if (this.has(marks, 'left_out')) names.push('left-out');
    if (['weight_cut', 'clipped_low', 'clipped_high'].some((name) => this.has(marks, name))) names.push('clipped');
    return names.join(' ');
  }

  paint(element) {
    const { mode, theme } = this.inspector;
    const { token } = element;
    element.style.backgroundColor = mode === 'version'
      ? versionColour(this.versions.indexOf(token.span.version), this.versions.length, theme)
      : this.has(token.marks, 'counts') || mode === 'log_ratio'
        ? diverging(token[mode], this.data.scales[mode]?.typical, theme)
        : '';
  }

  repaint() {
    for (const element of this.host.querySelectorAll('.tk')) this.paint(element);
  }

  // --- pointer and keyboard -----------------------------------------------------------------------

  listen() {
    const { signal } = this.listening;
    const at = (event) => event.target.closest?.('.tk');
    this.host.addEventListener('pointerover', (event) => at(event) && this.inspector.showNumbers(at(event).token), { signal });
    this.host.addEventListener('pointerleave', () => this.back(), { signal });
    this.host.addEventListener('click', (event) => at(event) && this.moveTo(at(event).token.at), { signal });
    this.host.addEventListener('keydown', (event) => this.onKey(event), { signal });
    this.host.addEventListener('focus', () => this.focus === null && this.blocks.length && this.moveTo(this.blocks[0].begin), { signal });
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
      PageDown: () => this.step(here, 100),
      PageUp: () => this.step(here, -100),
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
    const block = this.blocks.find(({ begin, end }) => begin <= at && at < end);
    await this.fill(block);
    const token = await this.tokenAt(at);
    if (this.gone || this.focus !== at || !token) return;
    this.mark(at);
    this.element(at)?.scrollIntoView({ block: 'nearest' });
    this.inspector.showNumbers(token);
  }

  mark(at) {
    const before = this.host.querySelector('.in-here');
    before?.classList.remove('in-here');
    before?.setAttribute('aria-selected', 'false');
    const element = this.element(at);
    if (!element) return;
    element.classList.add('in-here');
    element.setAttribute('aria-selected', 'true');
    this.host.setAttribute('aria-activedescendant', element.id);
  }
}

/** LINEAGE.STEP, oldest first. */
function byVersion(a, b) {
  const [one, other] = [a, b].map((text) => text.split('.').map(Number));
  return one[1] - other[1] || one[0] - other[0];
}
