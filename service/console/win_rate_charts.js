// Win rates with par, the rate at which both sides are equally good, as a labelled line.

import { band, bound, chart, dots, level, line, share } from "./charts.js";
import { count, interval, percent, told } from "./format.js";
import { againstBestOfN } from "./measured.js";

const PAR = 0.5;

// How the live win rate came about; null where there are too few comparisons.
export function liveChart({ version, opponent, points }, { par, colour }) {
  if (points.length < 2) return null;
  const last = points.at(-1);
  return chart({
    label: `Live win rate of ${version} against ${opponent}: ${percent(last.win_rate)} after ${last.count} comparisons`,
    x: { label: "comparisons" },
    y: { label: "win rate", values: share },
    data: [points.map((p) => p.count), points.map((p) => p.win_rate), points.map((p) => p.low), points.map((p) => p.high)],
    make: () => ({
      scales: { x: { time: false }, y: { range: [0, 1] } },
      series: [{ label: "comparisons", value: told(count) }, line("win rate", colour, { value: told(percent) }), bound("low"), bound("high")],
      bands: [band(3, 2, `${colour}-soft`)],
      hooks: { draw: [level(PAR, par)] },
    }),
    table: {
      head: ["Comparisons", "Win rate", "95% band"],
      rows: points.slice(-20).map((p) => [count(p.count), percent(p.win_rate), interval(p)]),
    },
  });
}

// The measured win rate of the best of k draws against best-of-n of the base; null where it was not measured.
export function drawsChart(version, found) {
  const curve = againstBestOfN(version?.evaluation);
  if (!curve.length) return null;
  const rates = curve.map((p) => p.rate);
  const range = [Math.max(0, Math.min(PAR, ...rates.map((r) => r.low)) - 0.06), Math.min(1, Math.max(PAR, ...rates.map((r) => r.high)) + 0.06)];
  return chart({
    label: `Measured win rate of the best of k draws of ${version.name} against best-of-n of the base, for k up to ${curve.length}`,
    x: { label: "k, draws per answer", values: (u, values) => values.map((k) => (Number.isInteger(k) ? k : "")) },
    y: { label: "win rate", values: share },
    data: [curve.map((p) => p.k), rates.map((r) => r.value), rates.map((r) => r.low), rates.map((r) => r.high),
      curve.map((p) => (found?.approved && p.k === found.k ? found.rate.value : null))],
    make: () => ({
      scales: { x: { time: false, range: [0.5, curve.length + 0.5] }, y: { range } },
      series: [{ label: "k", value: told(count) }, line("win rate", "accent", { value: told(percent), points: { show: true, size: 6 } }), bound("low"), bound("high"),
        { ...dots("the gate's choice", "amber", "amber", 11), value: told(percent) }],
      bands: [band(3, 2, "accent-soft")],
      hooks: { draw: [level(PAR, "par: as good as best-of-n")] },
    }),
    table: {
      head: ["k", "Win rate", "95% interval"],
      rows: curve.map((p) => [count(p.k), percent(p.rate.value), interval(p.rate)]),
    },
  });
}
