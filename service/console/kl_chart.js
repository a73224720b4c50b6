// Every version in the plane of win rate and KL, under the highest win rate that any policy can have.

import { chart, curved, dots, labels, line, share, whiskers } from "./charts.js";
import { decimal, interval, percent, told } from "./format.js";

export function frontierChart({ frontier, best_of_n: bestOfN }, versions, champion) {
  const kl = (v) => v.evaluation.kl.value, rate = (v) => v.evaluation.win_rate.value;
  const kls = [...new Set([...frontier, ...bestOfN].map((p) => p.kl).concat(versions.map(kl)))].sort((a, b) => a - b);
  const column = (points, x, y) => kls.map((at) => { const found = points.find((p) => x(p) === at); return found ? y(found) : null; });
  const named = (v, is) => ({ x: kl(v), y: rate(v), text: is ? `${v.name} (champion)` : v.name, short: v.name, below: true, name: "ink" });
  const marks = versions.map((v) => ({ x: kl(v), y: rate(v), across: v.evaluation.kl, up: v.evaluation.win_rate }));
  const lowest = Math.min(0.45, ...versions.map((v) => v.evaluation.win_rate.low - 0.1));
  return chart({
    label: `Win rate against KL from the base, of ${versions.length} versions and of best-of-n, with the highest win rate that is possible`,
    x: { label: "KL from the base, nats" },
    y: { label: "win rate against the base", values: share },
    data: [kls, column(frontier, (p) => p.kl, (p) => p.win_rate), column(bestOfN, (p) => p.kl, (p) => p.win_rate), column(versions, kl, rate)],
    make: () => ({
      scales: { x: { time: false, range: [0, frontier.at(-1).kl] }, y: { range: [lowest, 1.02] } },
      series: [{ label: "KL", value: told(decimal) }, line("highest possible", "faint", { value: told(percent), paths: curved }),
        { ...dots("best-of-n", "amber", "card"), value: told(percent) }, { ...dots("versions", "accent", "accent", 9), value: told(percent) }],
      hooks: { draw: [
        whiskers(marks, "accent"),
        labels([...bestOfN.filter((p) => p.n > 1).map((p) => ({ x: p.kl, y: p.win_rate, text: String(p.n), name: "amber" })),
          ...versions.map((v) => named(v, v.name === champion))]),
      ] },
    }),
    table: {
      head: ["Policy", "KL, nats", "Win rate"],
      rows: [...bestOfN.map((p) => [p.n === 1 ? "the base" : `best-of-${p.n}`, decimal(p.kl), percent(p.win_rate)]),
        ...versions.map((v) => [v.name, decimal(kl(v)), `${percent(rate(v))} (${interval(v.evaluation.win_rate)})`])],
    },
  });
}
