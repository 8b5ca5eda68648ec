'use strict';
const page = JSON.parse(document.getElementById('data').textContent);
const X_TITLES = {steps: 'step', tokens: 'target tokens', seconds: 'seconds of training'};
const CONFIG = {displayModeBar: false, responsive: true, doubleClick: 'reset'};
const DIVERGING = [[0, '#2166ac'], [0.25, '#92c5de'], [0.5, '#f7f7f7'], [0.75, '#f4a582'], [1, '#b2182b']];
const narrow = () => window.innerWidth < 600;

// Drawing waits until a plot comes near the screen, so that long pages open at once.
const drawings = new Map();
const watcher = new IntersectionObserver(entries => {
  for (const entry of entries) if (entry.isIntersecting) {
    watcher.unobserve(entry.target);
    drawings.get(entry.target)();
  }
}, {rootMargin: '400px'});
function drawLater(element, draw) {
  drawings.set(element, draw);
  watcher.unobserve(element);
  watcher.observe(element);
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const percent = value => (100 * value).toFixed(value < 0.0995 ? 1 : 0) + ' %';
const readable = layer => layer.replaceAll('_', ' ');

function plot(element, traces, layout) {
  if (!traces.length) {
    if (window.Plotly && element.data) Plotly.purge(element);
    element.replaceChildren(make('div', {class: 'nothing'}, 'no such numbers in these runs'));
    return;
  }
  element.querySelector('.nothing')?.remove();
  const axis = {gridcolor: '#e9edf0', zeroline: false, linecolor: '#b8c2ca', automargin: true, ticks: 'outside', ticklabeloverflow: 'allow', tickcolor: '#b8c2ca'};
  const merged = {
    margin: {l: 46, r: 16, t: 8, b: 40}, showlegend: false, hovermode: 'closest', dragmode: narrow() ? false : 'zoom',
    font: {family: 'system-ui, sans-serif', size: 12, color: '#1f2933'}, paper_bgcolor: '#fff', plot_bgcolor: '#fff',
    hoverlabel: {bgcolor: '#fff', bordercolor: '#b8c2ca', font: {color: '#1f2933'}, align: 'left'},
    ...layout, xaxis: {...axis, ...layout.xaxis}, yaxis: {...axis, ...layout.yaxis},
  };
  Plotly.react(element, traces, merged, CONFIG);
}

// Curves of series: a line for the mean, a band around it.
function drawCurves(element, task, state) {
  const asked = element.dataset.curve, name = asked === 'held_out' ? state.held_out : asked;
  const scale = name === 'seconds_per_step' ? 1000 : 1;
  const shares = name === 'input_wait' || name === 'held_out_accuracy';
  const format = shares ? '.1%' : name === 'seconds_per_step' ? '.4~g' : '.4f';
  const traces = [], seen = [];
  task.curves[name].forEach((curve, i) => {
    if (!curve || state.hiddenSeries.has(i)) return;
    const series = task.series[i], x = curve[state.x];
    if (x.every(value => value === null)) return;
    const scaled = values => values.map(value => value === null ? null : value * scale);
    const line = {color: series.color, dash: series.dash, width: 2};
    if (curve.count.some(count => count > 1)) {
      const edge = {mode: 'lines', line: {width: 0}, hoverinfo: 'skip', type: 'scatter'};
      const filled = bound => scaled(bound.map((value, j) => value ?? curve.mean[j]));
      traces.push({...edge, x, y: filled(curve.low)});
      traces.push({...edge, x, y: filled(curve.high), fill: 'tonexty', fillcolor: series.color + '2e'});
    }
    const last = curve.steps.at(-1);
    curve.steps.forEach((step, j) => {
      if (step >= last / 10) seen.push(scale * (curve.low[j] ?? curve.mean[j]), scale * (curve.high[j] ?? curve.mean[j]));
    });
    const few = x.length <= 60;
    traces.push({
      type: 'scatter', x, y: scaled(curve.mean), line, mode: few ? 'lines+markers' : 'lines', marker: {size: 5, color: series.color},
      customdata: curve.steps.map((step, j) => [step, bandText(curve, j, scale, shares)]),
      hovertemplate: `<b>${escape(series.label)}</b><br>step %{customdata[0]:,}` +
        (state.x === 'steps' ? '' : `<br>%{x:,.4~s} ${X_TITLES[state.x]}`) + `<br>%{y:${format}}%{customdata[1]}<extra></extra>`,
    });
  });
  const positive = state.log ? {type: 'log', nticks: 8} : {rangemode: 'tozero'};
  const isLoss = asked === 'held_out' || asked === 'training', [low, high] = [Math.min(...seen), Math.max(...seen)];
  const isCut = high > low && !(isLoss && state.whole);
  const range = isCut ? {range: [isLoss ? low - 0.05 * (high - low) : 0, high + 0.05 * (high - low)]} : {autorange: true};
  plot(element, traces, {
    xaxis: {title: {text: X_TITLES[state.x], standoff: 6}, ...positive, tickformat: '~s'},
    yaxis: {tickformat: shares ? ',.1~%' : '', ...range},
  });
}
function bandText(curve, j, scale, shares) {
  const count = curve.count[j];
  if (count < 2 || curve.low[j] === null) return count === 1 ? '' : ` (${count} runs)`;
  const text = value => shares ? (100 * value).toFixed(1) + ' %' : (value * scale).toPrecision(4);
  if (count === 2) return ` (${text(curve.low[j])} to ${text(curve.high[j])}, 2 runs)`;
  return ` ± ${text((curve.high[j] - curve.low[j]) / 2)} (${count} runs)`;
}
const escape = text => text.replace(/[<>&]/g, c => ({'<': '&lt;', '>': '&gt;', '&': '&amp;'})[c]);

// Encoder layers are blue and decoder layers orange, deeper ones darker.
function layerColors(layers) {
  const stacks = {encoder: layers.filter(l => l.startsWith('encoder')), decoder: layers.filter(l => !l.startsWith('encoder'))};
  return Object.fromEntries(layers.map(layer => {
    const stack = layer.startsWith('encoder') ? 'encoder' : 'decoder', own = stacks[stack];
    const lightness = own.length === 1 ? 42 : 68 - 44 * own.indexOf(layer) / (own.length - 1);
    return [layer, stack === 'encoder' ? `hsl(208, 80%, ${lightness}%)` : `hsl(22, 85%, ${lightness}%)`];
  }));
}
function drawLayers(element, task, state) {
  const run = task.routed[state.run], metric = element.dataset.layers, values = run.over_time[metric];
  const layers = Object.keys(values), colors = layerColors(layers), share = metric === 'fraction_dropped';
  const traces = layers.filter(layer => !state.hiddenLayers.has(layer)).map(layer => ({
    type: 'scatter', mode: 'lines', x: run.over_time.steps, y: values[layer], line: {color: colors[layer], width: 1.6},
    hovertemplate: `<b>${readable(layer)}</b><br>step %{x:,}<br>%{y:${share ? '.1%' : '.3f'}}<extra></extra>`,
  }));
  const highest = metric === 'router_entropy' && run.num_experts ? Math.log(run.num_experts) : null;
  plot(element, traces, {
    xaxis: {title: {text: 'step', standoff: 6}, tickformat: '~s', rangemode: 'tozero'},
    yaxis: {tickformat: share ? ',.1~%' : '', rangemode: 'tozero'},
    shapes: highest ? [{type: 'line', xref: 'paper', x0: 0, x1: 1, y0: highest, y1: highest, line: {dash: 'dot', width: 1, color: '#6b7780'}}] : [],
  });
}

function mapHeight(rows, each, least, most) {
  return Math.max(least, Math.min(most, rows * each)) + 50;
}
function showLoads(container, task, state) {
  const loads = task.routed[state.run].loads;
  container.replaceChildren();
  if (!Object.keys(loads.layers).length) {
    container.append(make('p', {class: 'note'}, 'This run has no train/expert_tokens.jsonl, where the load of every expert is kept.'));
    return;
  }
  for (const [layer, shares] of Object.entries(loads.layers)) {
    const element = make('div', {class: 'plot', style: `--height: ${mapHeight(shares.length, 13, 90, 420)}px`});
    container.append(make('figure', {}, make('figcaption', {}, readable(layer)), element));
    const x = loads.steps.map(step => step.toLocaleString('en'));
    drawLater(element, () => plot(element, [{
      type: 'heatmap', x, y: shares.map((_, i) => i), z: shares, zmin: 0, zmax: 2, colorscale: DIVERGING, showscale: false,
      hovertemplate: 'expert %{y}<br>step %{x}<br>%{z:.2f} × an even share<extra></extra>',
    }], {
      xaxis: {title: {text: 'step', standoff: 4}, type: 'category', nticks: 6, tickangle: 0, showgrid: false},
      yaxis: {title: {text: 'expert', standoff: 4}, showgrid: false, autorange: 'reversed', tickformat: 'd', dtick: shares.length <= 8 ? 1 : null},
      margin: {l: 40, r: 6, t: 4, b: 42},
    }));
  }
}

// What each expert takes: information, tokens, and groups, one layer at a time.
function showExperts(container, task, state) {
  const run = task.routed[state.run], experts = run.experts;
  container.replaceChildren();
  if (!experts) {
    container.append(make('p', {class: 'note'}, 'Not measured yet: make the report with --experts, which runs the newest checkpoint on the held-out data once.'));
    return;
  }
  const layers = Object.keys(experts.layers), grouped = experts.groups.length > 0;
  const table = make('table', {}, make('thead', {}, row('th', ['layer', 'tokens and experts', 'by chance', ...(grouped ? ['groups and experts', 'by chance'] : [])])));
  const body = make('tbody');
  for (const layer of layers) {
    const found = experts.layers[layer];
    const bits = [found.token_bits, found.token_bits_by_chance, ...(grouped ? [found.group_bits, found.group_bits_by_chance] : [])];
    const line = row('td', bits.map(value => value === undefined ? '–' : value.toFixed(2)));
    line.prepend(make('th', {}, readable(layer)));
    body.append(line);
  }
  table.append(body);
  const select = make('select', {});
  for (const layer of layers) select.append(make('option', {value: layer}, readable(layer)));
  const below = make('div');
  const choose = () => { state.layer = select.value; showLayer(below, experts, experts.layers[select.value]); };
  select.value = layers.includes(state.layer) ? state.layer : layers[0];
  select.addEventListener('change', choose);
  container.append(
    make('p', {class: 'note'}, `First choices of the routers at step ${experts.step.toLocaleString('en')}, over ${experts.batches} batches of the split “${experts.split}”. ` +
      'Mutual information in bits: how much the token (or its group) tells about the expert. A finite sample shows some where there is none; “by chance” is about how much.'),
    make('div', {class: 'wide'}, table),
    make('div', {class: 'controls', style: 'margin-top: 14px'}, make('label', {}, 'layer: ', select)), below);
  choose();
}
function row(tag, texts) {
  return make('tr', {}, ...texts.map(text => make(tag, {}, text)));
}
function showLayer(container, experts, layer) {
  const total = layer.expert_tokens.reduce((a, b) => a + b, 0), body = make('tbody');
  layer.favourites.forEach((tokens, expert) => {
    const chips = tokens.map(([piece, count, of]) => make('span', {class: 'token', style: `--share: ${100 * count / of}%`,
      title: `${count.toLocaleString('en')} of ${of.toLocaleString('en')} occurrences`}, make('b', {}, piece), make('small', {}, `${percent(count / of)} of ${of.toLocaleString('en')}`)));
    const name = make('th', {}, `expert ${expert}`, make('br'), make('small', {}, `${percent(layer.expert_tokens[expert] / Math.max(total, 1))} of tokens`));
    body.append(make('tr', {}, name, make('td', {}, ...(chips.length ? chips : [make('small', {}, 'no token more than its share')]))));
  });
  container.replaceChildren(
    make('p', {class: 'note'}, 'Tokens that an expert takes more of than its share, with the share of their occurrences that it got. First are those with the ' +
      'largest count × log₂(lift), lift being that share over the expert\'s share of all tokens: what they add to the mutual information. ' +
      '␣ is a space; in the decoder a token is the one read, its target\'s predecessor.'),
    make('div', {class: 'wide tall'}, make('table', {class: 'experts'}, body)));
  if (layer.group_tokens) container.append(...groupMap(experts.groups, layer));
}
function groupMap(groups, layer) {
  const shares = layer.group_tokens.map(counts => {
    const sum = counts.reduce((a, b) => a + b, 0);
    return sum ? counts.map(count => count / sum) : null;
  });
  const favourite = i => shares[i].indexOf(Math.max(...shares[i]));
  const order = groups.map((_, i) => i).filter(i => shares[i])
    .sort((a, b) => favourite(a) - favourite(b) || Math.max(...shares[b]) - Math.max(...shares[a]));
  const element = make('div', {class: 'plot', style: `height: ${mapHeight(order.length, 15, 120, 1800)}px`});
  drawLater(element, () => plot(element, [{
    type: 'heatmap', z: order.map(i => shares[i]), y: order.map(i => groups[i]), x: layer.expert_tokens.map((_, i) => i), zmin: 0,
    colorscale: [[0, '#ffffff'], [0.15, '#dceaf5'], [0.4, '#92c5de'], [1, '#08306b']], showscale: !narrow(), colorbar: {tickformat: ',.0%', thickness: 12, outlinewidth: 0},
    hovertemplate: '<b>%{y}</b><br>expert %{x}<br>%{z:.1%} of its tokens<extra></extra>',
  }], {
    xaxis: {title: {text: 'expert', standoff: 4}, tickformat: 'd', showgrid: false},
    yaxis: {autorange: 'reversed', type: 'category', showgrid: false, dtick: 1, tickfont: {size: 10}}, margin: {l: 50, r: 6, t: 4, b: 42},
  }));
  return [make('h4', {}, 'Experts by group'),
    make('p', {class: 'note'}, `Share of a group's tokens that each expert takes, groups ordered by the expert that takes most of them. Mutual information ${layer.group_bits.toFixed(3)} bits (by chance about ${layer.group_bits_by_chance.toFixed(3)}).`),
    element];
}

function showLegend(container, items, hidden, redraw) {
  container.replaceChildren(...items.map(({key, label, color, dash}) => {
    const button = make('button', {type: 'button', title: 'show or hide'}, make('i', {class: `swatch ${dash}`, style: `--color: ${color}`}), label);
    button.classList.toggle('hidden', hidden.has(key));
    button.addEventListener('click', () => {
      hidden.has(key) ? hidden.delete(key) : hidden.add(key);
      button.classList.toggle('hidden', hidden.has(key));
      redraw();
    });
    return button;
  }));
}

function start(main) {
  const task = page.tasks[main.dataset.task];
  const state = {x: 'steps', log: false, whole: false, held_out: 'held_out', run: 0, layer: null, hiddenSeries: new Set(), hiddenLayers: new Set()};
  const all = selector => [...main.querySelectorAll(selector)];
  const captions = {held_out: 'Held-out loss, nats per target token', held_out_text: 'Held-out loss of the text alone, nats per token', held_out_accuracy: 'Held-out accuracy'};
  const drawAll = () => {
    for (const element of all('[data-curve]')) drawLater(element, () => drawCurves(element, task, state));
  };
  const drawRouting = () => {
    for (const element of all('[data-layers]')) drawLater(element, () => drawLayers(element, task, state));
  };
  const showRouting = () => {
    if (!task.routed.length) return;
    const layers = Object.keys(task.routed[state.run].over_time.fraction_dropped), colors = layerColors(layers);
    for (const element of all('[data-legend="layers"]'))
      showLegend(element, layers.map(layer => ({key: layer, label: readable(layer), color: colors[layer], dash: 'solid'})), state.hiddenLayers, drawRouting);
    drawRouting();
    for (const element of all('[data-loads]')) showLoads(element, task, state);
    for (const element of all('[data-experts]')) showExperts(element, task, state);
  };
  for (const button of all('.choice button')) button.addEventListener('click', () => {
    state.x = button.value;
    for (const other of all('.choice button')) other.classList.toggle('chosen', other === button);
    drawAll();
  });
  for (const select of all('select[data-choice]')) select.addEventListener('change', () => {
    state[select.dataset.choice] = select.value;
    if (select.dataset.choice === 'run') return showRouting();
    main.querySelector('[data-curve="held_out"]').previousElementSibling.textContent = captions[state.held_out];
    drawAll();
  });
  for (const box of all('[data-check]')) box.addEventListener('change', () => { state[box.dataset.check] = box.checked; drawAll(); });
  const items = task.series.map((series, i) => ({...series, key: i, label: series.label + (series.runs > 1 ? ` (${series.runs} seeds)` : '')}));
  for (const element of all('[data-legend="series"]')) showLegend(element, items, state.hiddenSeries, drawAll);
  drawAll();
  showRouting();
}

// Tables are sorted by a click on a heading.
function sortBy(header) {
  const table = header.closest('table'), body = table.tBodies[0], column = header.cellIndex;
  const ascending = header.getAttribute('aria-sort') !== 'ascending';
  for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
  header.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
  const value = line => line.cells[column].dataset.value ?? line.cells[column].textContent.trim();
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)], [p, q] = [parseFloat(x), parseFloat(y)];
    if (Number.isNaN(p) !== Number.isNaN(q)) return Number.isNaN(p) ? 1 : -1;
    return (ascending ? 1 : -1) * (Number.isNaN(p) ? x.localeCompare(y) : p - q);
  };
  body.append(...[...body.rows].sort(compare));
}
for (const header of document.querySelectorAll('.sortable thead th')) header.addEventListener('click', () => sortBy(header));
for (const main of document.querySelectorAll('main.task')) start(main);
