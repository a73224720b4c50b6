// uPlot in the page's colours, each chart with its figures as a table under it.

import uPlot from "./vendor/uplot-1.6.32.js";
import { h } from "./dom.js";

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const font = '12px system-ui, "Segoe UI", Roboto, sans-serif';
export const share = (u, values) => values.map((value) => `${Math.round(100 * value)}%`);

function axis(label, values, side) {
  return {
    label, values, side, font, labelFont: font, labelSize: 20, labelGap: 0, size: side === 3 ? 48 : 30,
    stroke: colour("faint"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false },
  };
}

// `make` gives uPlot's series, bands, ranges and hooks in the colours of the moment.
export function chart({ label, x, y, data, make, table, height = 260 }) {
  const host = h("div", { class: "plot", role: "img", "aria-label": label });
  const figure = h("figure", { class: "chart" }, host, details(table));
  const draw = (width) => {
    const parts = make();
    host.replaceChildren();
    new uPlot({
      width, height, padding: [14, 14, 0, 0], pxAlign: 0,
      cursor: { points: { size: 7 }, drag: { x: false, y: false } },
      legend: { live: true },
      axes: [axis(x.label, x.values, 2), axis(y.label, y.values, 3)],
      ...parts,
    }, data, host);
  };
  let width = 0;
  new ResizeObserver(() => {
    if (host.clientWidth && host.clientWidth !== width) draw((width = host.clientWidth));
  }).observe(host);
  return figure;
}

function details({ head, rows }) {
  return h("details", {}, h("summary", {}, "Figures"),
    h("table", { class: "figures" },
      h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", {}, cell)))))));
}

export const line = (label, stroke, more = {}) =>
  ({ label, stroke: colour(stroke), width: 2, points: { show: false }, spanGaps: true, ...more });
export const curved = uPlot.paths.spline();
export const bound = (label) => ({ label, class: "bound", stroke: "transparent", points: { show: false } });
export const dots = (label, stroke, fill, size = 8) =>
  ({ label, stroke: colour(stroke), paths: () => null, points: { show: true, size, width: 2, fill: colour(fill) } });
export const band = (upper, lower, fill) => ({ series: [upper, lower], fill: colour(fill) });

// Drawing on the plot itself, in pixels of the canvas. `level` is a line across it with a label.
export function level(value, text) {
  return (u) => {
    const y = u.valToPos(value, "y", true), { left, width } = u.bbox, { ctx } = u;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = colour("faint");
    ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.lineWidth = devicePixelRatio;
    ctx.beginPath();
    ctx.moveTo(left, y);
    ctx.lineTo(left + width, y);
    ctx.stroke();
    ctx.setLineDash([]);
    write(ctx, text, left + width - 4 * devicePixelRatio, y - 5 * devicePixelRatio, "right");
    ctx.restore();
  };
}

// Texts beside points: each in the first place, below it or above, where it covers none of those before. A line leads to
// one that is not next to its point.
export function labels(points) {
  return (u) => {
    const { ctx, bbox } = u, taken = [], gap = 8 * devicePixelRatio, tall = 14 * devicePixelRatio;
    ctx.save();
    ctx.font = wide();
    for (const { x, y, text, short = text, below, name = "soft" } of points) {
      const shown = ctx.measureText(text).width > bbox.width ? short : text;
      const half = ctx.measureText(shown).width / 2, least = bbox.left + half, most = bbox.left + bbox.width - half;
      const middle = Math.min(most, Math.max(least, u.valToPos(x, "x", true) + (below ? 0 : gap + half)));
      const base = u.valToPos(y, "y", true), under = base + 2.4 * gap, over = base - 0.9 * gap;
      const places = below ? [under, over, ...[1, 2, 3, 4].flatMap((step) => [under + step * tall, over - step * tall])] : [over];
      const free = (at) => at > bbox.top + tall && at < bbox.top + bbox.height
        && taken.every((one) => Math.abs(one.at - at) >= tall || Math.abs(one.middle - middle) >= one.half + half);
      const at = places.find(free) ?? places[0];
      if (at !== under && at !== over) lead(ctx, u.valToPos(x, "x", true), base, at > base ? at - 0.8 * tall : at + 0.3 * tall);
      taken.push({ at, middle, half });
      ctx.fillStyle = colour(name);
      write(ctx, shown, middle, at, "center");
    }
    ctx.restore();
  };
}

function lead(ctx, x, from, to) {
  ctx.strokeStyle = colour("faint");
  ctx.lineWidth = devicePixelRatio;
  ctx.beginPath();
  ctx.moveTo(x, from);
  ctx.lineTo(x, to);
  ctx.stroke();
}

export function whiskers(points, name) {
  return (u) => {
    const { ctx } = u;
    ctx.save();
    ctx.strokeStyle = colour(name);
    ctx.lineWidth = 1.5 * devicePixelRatio;
    for (const { x, y, across, up } of points) {
      const [px, py] = [u.valToPos(x, "x", true), u.valToPos(y, "y", true)];
      ctx.beginPath();
      ctx.moveTo(u.valToPos(across.low, "x", true), py);
      ctx.lineTo(u.valToPos(across.high, "x", true), py);
      ctx.moveTo(px, u.valToPos(up.low, "y", true));
      ctx.lineTo(px, u.valToPos(up.high, "y", true));
      ctx.stroke();
    }
    ctx.restore();
  };
}

const wide = () => `${12 * devicePixelRatio}px system-ui, "Segoe UI", Roboto, sans-serif`;

function write(ctx, text, x, y, align) {
  ctx.font = wide();
  ctx.textAlign = align;
  // An edge in the card's colour keeps it legible where it crosses lines.
  ctx.save();
  ctx.lineJoin = "round";
  ctx.lineWidth = 4 * devicePixelRatio;
  ctx.strokeStyle = colour("card");
  ctx.strokeText(text, x, y);
  ctx.restore();
  ctx.fillText(text, x, y);
}
