// One drawing of curves that have their own places on the horizontal axis.

import { axisValues, FONT } from "./charts.js";
import { make, short } from "./format.js";
import { colour, nth, onTheme } from "./theme.js";

/** Draw `series` ([{label, x, y}]) into `element`; it follows the element's size and the theme while it is there. */
export function plot(element, { series, xlabel, ylabel }) {
  const legend = make("div", { class: "legend" });
  const room = make("div", { class: "plot" });
  element.replaceChildren(make("div", { class: "one-plot", role: "img", "aria-label": `${ylabel} over ${xlabel}` }, legend, room));
  const data = window.uPlot.join(series.map((one) => [one.x, one.y]));
  let drawn = null;
  const tell = (u) => {
    const at = u.cursor.idx;
    legend.replaceChildren(
      ...series.map((one, index) => {
        const values = data[index + 1];
        const value = at === null || at === undefined ? last(values) : values[at];
        const dot = make("i");
        dot.style.background = nth(index * 2);
        return make("span", { class: "chip" }, dot, one.label, make("b", {}, short(value ?? null)));
      }),
      make("span", { class: "chip" }, at === null || at === undefined ? "" : `${xlabel} ${short(data[0][at])}`),
    );
  };
  const draw = () => {
    drawn?.destroy();
    const text = colour("text-dim");
    const axis = { stroke: text, font: FONT, grid: { stroke: colour("grid"), width: 1 }, ticks: { show: false }, values: (u, splits) => axisValues(splits) };
    const size = { width: Math.max(80, room.clientWidth), height: Math.max(80, room.clientHeight) };
    const options = {
      ...size,
      legend: { show: false },
      padding: [6, 14, 0, 0],
      cursor: { y: false, drag: { setScale: true } },
      scales: { x: { time: false } },
      axes: [{ ...axis, size: 34, label: xlabel, labelFont: FONT, labelSize: 14 }, { ...axis, size: 44 }],
      series: [{}, ...series.map((one, index) => ({ label: one.label, stroke: nth(index * 2), width: 1.6, spanGaps: true, points: { show: one.x.length < 30 } }))],
      hooks: { setCursor: [tell] },
    };
    drawn = new window.uPlot(options, data, room);
    tell(drawn);
  };
  const forget = onTheme(() => (element.isConnected ? draw() : forget()));
  new ResizeObserver(([entry], observer) => {
    if (!room.isConnected) observer.disconnect();
    else if (entry.contentRect.width > 40) drawn ? drawn.setSize({ width: Math.floor(entry.contentRect.width), height: Math.floor(entry.contentRect.height) }) : draw();
  }).observe(room);
}

function last(values) {
  for (let at = values.length - 1; at >= 0; at--) if (values[at] !== null && values[at] !== undefined) return values[at];
  return null;
}
