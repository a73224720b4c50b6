// How well the champion answers: live, and as it was measured.

import { get } from "./api.js";
import { band, bound, chart, curved, dots, labels, level, line, share, whiskers } from "./charts.js";
import { ago, card, count, decimal, empty, h, interval, percent, tile, told } from "./dom.js";
import { against, allowed, draws, share as won } from "./measured.js";

export async function load() {
  const [ready, versions, pairs] = await Promise.all([get("health/ready"), get("admin/versions"), get("admin/pairs")]);
  const measured = versions.versions.filter((version) => version.evaluation.win_rate && version.evaluation.kl);
  const furthest = Math.max(2, ...measured.map((version) => version.evaluation.kl.high ?? version.evaluation.kl.value));
  const [history, live, frontier] = await Promise.all([
    get("admin/charts/win-rate"), get("admin/win-rate"), get(`admin/charts/frontier?kl=${Math.min(20, 1.15 * furthest)}`),
  ]);
  return { ready, versions: versions.versions, measured, pairs, history, live, frontier };
}

export function render({ ready, versions, measured, pairs, history, live, frontier }) {
  const champion = versions.find((version) => version.name === ready.serving);
  const distilled = champion && champion.kind !== "base";
  const evaluation = champion?.evaluation ?? {};
  const found = allowed(champion);
  const last = history.points.at(-1);
  const rival = live.win_rates.find((one) => one.version === ready.serving && one.opponent.startsWith("best-of-"));
  return [
    live.fallback && live.best_of_n && live.fallback.version === live.champion ? fallback(live.fallback) : null,
    h("div", { class: "tiles" },
      rival ? tile("As good as best-of-n?", percent(rival.win_rate), `of comparisons won against ${rival.opponent}, 95 % band ${interval(rival)}; 50 % is as good`, "accent") : null,
      savings(live.savings),
      tile("Champion", ready.serving, live.best_of_n ? "answers with best-of-n" : `answers with ${draws(live.k ?? 1)}`, "name"),
      tile("Live win rate", last ? percent(last.win_rate) : "–",
        last ? `95 % band ${interval(last)}, ${count(last.count)} audits` : distilled ? "no audit yet" : "audited once a version is champion", "accent"),
      tile("Measured win rate", evaluation.win_rate ? percent(evaluation.win_rate.value) : "–",
        evaluation.win_rate ? `95 % interval ${interval(evaluation.win_rate)}` : "the base itself"),
      found ? tile("Against what was served", won(found), against(found)) : null,
      found?.approved ? tile("Expected saving", percent(found.saved), `of the tokens per answer at k = ${found.k}, the gate's choice`) : null,
      tile("Gain recovered", evaluation.recovered ? percent(evaluation.recovered.value) : "–",
        evaluation.recovered ? `at ${decimal(evaluation.kl.value)} nats from the base` : "nothing distilled yet"),
      tile("Groups logged", count(pairs.groups), pairs.last ? `the last one ${ago(pairs.last)}` : "none yet")),
    h("div", { class: "two" },
      card("Live win rate", `${draws(history.k)} of ${history.version} against a fresh draw of ${history.opponent}, ties as half`, liveChart(history)),
      card("Win rate against KL", "What every version costs and brings, under the most that any policy can have",
        frontierChart(frontier, measured, ready.serving))),
  ];
}

// What the champion has saved since it was promoted; nothing before there was an audit.
function savings(saved) {
  if (!saved || saved.saved_share === null) return null;
  return tile("Tokens saved since promotion", percent(saved.saved_share),
    `${count(saved.saved_tokens)} of best-of-${saved.n}'s, audits included`, "accent");
}

function fallback(event) {
  return h("p", { class: "alert", role: "alert" },
    `Best-of-n answers again since ${new Date(event.time).toLocaleString()}: ${event.reason} (${event.replaced})`);
}

function liveChart(history) {
  const { points } = history;
  if (points.length < 2) return empty("Every audit compares an answer of the champion with a fresh draw of the base. There are not enough yet.");
  return chart({
    label: `Live win rate of ${history.version}: ${percent(points.at(-1).win_rate)} after ${points.at(-1).count} audits`,
    x: { label: "audits" },
    y: { label: "win rate", values: share },
    data: [points.map((p) => p.count), points.map((p) => p.win_rate), points.map((p) => p.low), points.map((p) => p.high)],
    make: () => ({
      scales: { x: { time: false }, y: { range: [0, 1] } },
      series: [{ label: "audits", value: told(count) }, line("win rate", "accent", { value: told(percent) }), bound("low"), bound("high")],
      bands: [band(3, 2, "accent-soft")],
      hooks: { draw: [level(0.5, "no better than the base")] },
    }),
    table: {
      head: ["audits", "win rate", "95 % band"],
      rows: points.slice(-20).map((p) => [count(p.count), percent(p.win_rate), interval(p)]),
    },
  });
}

function frontierChart({ frontier, best_of_n }, versions, champion) {
  const kls = [...new Set([...frontier, ...best_of_n].map((p) => p.kl).concat(versions.map((v) => v.evaluation.kl.value)))].sort((a, b) => a - b);
  const at = (points, kl, value) => points.filter((p) => kl(p) === kls[value]);
  const column = (points, kl, rate) => kls.map((_, i) => { const found = at(points, kl, i); return found.length ? rate(found[0]) : null; });
  const kl = (v) => v.evaluation.kl.value, rate = (v) => v.evaluation.win_rate.value;
  const marks = versions.map((v) => ({ x: kl(v), y: rate(v), across: v.evaluation.kl, up: v.evaluation.win_rate }));
  return chart({
    label: `Win rate against KL from the base of ${versions.length} versions, with the highest that is possible`,
    x: { label: "KL from the base, nats" },
    y: { label: "win rate", values: share },
    data: [kls, column(frontier, (p) => p.kl, (p) => p.win_rate), column(best_of_n, (p) => p.kl, (p) => p.win_rate), column(versions, kl, rate)],
    make: () => ({
      scales: { x: { time: false, range: [0, frontier.at(-1).kl] }, y: { range: [0.45, 1.02] } },
      series: [{ label: "KL", value: told(decimal) }, line("highest possible", "faint", { value: told(percent), paths: curved }),
        { ...dots("best-of-n", "amber", "card"), value: told(percent) }, { ...dots("versions", "accent", "accent", 9), value: told(percent) }],
      hooks: { draw: [
        whiskers(marks, "accent"),
        labels(best_of_n.filter((p) => p.n > 1).map((p) => ({ x: p.kl, y: p.win_rate, text: String(p.n) })), "amber"),
        labels(versions.map((v) => ({ x: kl(v), y: rate(v), text: v.name === champion ? `${v.name} (champion)` : v.name, below: true })), "ink"),
      ] },
    }),
    table: {
      head: ["policy", "KL, nats", "win rate"],
      rows: [...best_of_n.map((p) => [`best of ${p.n}`, decimal(p.kl), percent(p.win_rate)]),
        ...versions.map((v) => [v.name, decimal(kl(v)), `${percent(rate(v))} (${interval(v.evaluation.win_rate)})`])],
    },
  });
}
