// How well the champion answers and what it saves: live, and as it was measured.

import { get } from "./api.js";
import { drawsChart, liveChart } from "./win_rate_charts.js";
import { frontierChart } from "./kl_chart.js";
import { badge, bar, card, empty, h, NONE, prose, tile } from "./dom.js";
import { count, decimal, draws, interval, percent, plural, when } from "./format.js";
import { against, againstBestOfN, allowed, share, threshold } from "./measured.js";

const history = (opponent) => get(`admin/charts/win-rate?opponent=${encodeURIComponent(opponent)}`);

export async function load() {
  const [live, versions] = await Promise.all([get("admin/win-rate"), get("admin/versions")]);
  const measured = versions.versions.filter((version) => version.evaluation.win_rate && version.evaluation.kl);
  const furthest = Math.max(2, ...measured.map((version) => version.evaluation.kl.high ?? version.evaluation.kl.value));
  const [againstBestOfN, againstBase, frontier] = await Promise.all([
    history(`best-of-${live.n}`), history(live.base), get(`admin/charts/frontier?kl=${Math.min(20, 1.15 * furthest)}`),
  ]);
  return { live, versions: versions.versions, measured, againstBestOfN, againstBase, frontier };
}

export function render({ live, versions, measured, againstBestOfN, againstBase, frontier }) {
  const champion = versions.find((version) => version.name === live.champion);
  const { win_rate: rate, recovered, kl } = champion?.evaluation ?? {};
  const found = allowed(champion);
  const last = againstBase.points.at(-1);
  const untold = whyUntold(live, versions);
  return [
    live.fallback && live.best_of_n && live.fallback.version === live.champion ? fallback(live.fallback) : null,
    h("div", { class: "tiles lead" }, quality(live, untold), savings(live, untold),
      tile("Champion", live.champion, `It answers with ${live.best_of_n ? `best-of-${live.n}` : draws(live.k)}.`, { kind: "name" })),
    h("div", { class: "tiles" },
      tile("Live win rate", percent(last?.win_rate),
        last ? `Against one draw of ${live.base}; 95% band ${interval(last)} after ${plural(last.count, "comparison")}.` : prose(untold)),
      tile("Measured win rate", percent(rate?.value),
        rate ? `Against one draw of ${live.base}, before the promotion; 95% interval ${interval(rate)}.` : unmeasured(champion)),
      tile("Against best-of-n", share(found), found ? `${against(found)}.` : unmeasured(champion)),
      tile("Expected saving", percent(champion?.verdict?.saved),
        champion?.verdict?.k ? `Of the tokens per answer with k\u00a0=\u00a0${champion.verdict.k}, which the gate chose.` : unmeasured(champion)),
      tile("Gain recovered", percent(recovered?.value),
        recovered ? `Of what best-of-${champion.evaluation.n} gains, at ${decimal(kl?.value)} nats from the base.` : unmeasured(champion))),
    h("div", { class: "two" },
      card("Live win rate against best-of-n", sides(againstBestOfN, `best-of-${live.n} of ${live.base}`),
        liveChart(againstBestOfN, { par: `par: as good as best-of-${live.n}`, colour: "accent" }) ?? empty(prose(untold))),
      card("Win rate against KL", "What every version gains, and how far it moved from the base, under the highest win rate that any policy can have.",
        frontierChart(frontier, measured, live.champion),
        measured.length ? null : empty(prose("No version has been measured yet: run `bonbon loop --now` to train and measure the first.")))),
    h("div", { class: "two" },
      card("Live win rate against the base", sides(againstBase, `one draw of ${live.base}`),
        liveChart(againstBase, { par: "par: as good as the base", colour: "amber" }) ?? empty(prose(untold))),
      card("How many draws are needed", needed(champion),
        drawsChart(champion, found) ?? empty(prose("The champion has not been compared for several numbers of draws: promote a version that `bonbon loop` has measured.")))),
  ];
}

const sides = ({ points, k, version }, opponent) =>
  (points.length ? `${draws(k)} of ${version} against ${opponent}; a tie counts as half.`.replace(/^./, (first) => first.toUpperCase()) : null);

function needed(version) {
  const least = threshold(version);
  if (!againstBestOfN(version?.evaluation).length) return null;
  const { base, n } = version.evaluation;
  const chosen = least === null ? "" : ` The gate chooses the smallest k whose lower bound reaches ${percent(least)}.`;
  return `Measured win rate of the best of k draws against ${draws(n)} of ${base}.${chosen}`;
}

// Why there is no live win rate, and what to do about it.
function whyUntold({ best_of_n: bestOfN, n, audit_fraction: fraction }, versions) {
  const other = versions.some((version) => version.kind !== "base" && ["approved", "retired"].includes(version.state));
  if (bestOfN) return `Best-of-${n} answers now: ${other ? "promote a version on the Versions page" : "let `bonbon loop` train a version"} to save draws.`;
  if (!fraction) return "No answer is compared: set `service.audit_budget` or `service.audit_fraction` above 0.";
  return `No answer has been compared yet: send requests, of which ${percent(fraction)} are compared in the background.`;
}

const unmeasured = (version) =>
  (!version || version.kind === "base" ? "Promote a distilled version to see it." : prose(`The registry has no evaluation of it: \`bonbon evaluate ${version.name}\` prints one.`));

function quality(live, untold) {
  const title = "As good as best-of-n?", bestOfN = `best-of-${live.n} of ${live.base}`;
  const rival = live.best_of_n ? null
    : live.win_rates.find((one) => one.version === live.champion && one.opponent === `best-of-${live.n}` && one.k === live.k);
  if (!rival) return tile(title, NONE, prose(untold), { kind: "accent" });
  const verdict = rival.low >= 0.5 ? badge("yes", "passed") : rival.high < 0.5 ? badge("no", "refused") : badge("no difference shown", "open");
  return tile(title, [percent(rival.win_rate), " ", verdict],
    `The champion wins this share of its comparisons with ${bestOfN}; 95% band ${interval(rival)}. At 50%, which is marked, both are equally good.`,
    { kind: "accent", mark: bar(rival.win_rate, { par: 0.5 }) });
}

// What the champion has saved since it was promoted, whatever other versions have saved before.
function savings({ savings: saved, ...live }, untold) {
  const title = "Tokens saved since promotion";
  if (live.best_of_n || !saved || saved.saved_share === null) return tile(title, NONE, prose(unsaved(live, saved, untold)), { kind: "accent" });
  const { saved_tokens: tokens, saved_share: part, n, since } = saved;
  return tile(title, percent(part),
    [`${count(Math.abs(tokens))} tokens ${tokens < 0 ? "more" : "fewer"} than best-of-${n} of ${live.base} takes for the same `,
      plural(saved.answers, "answer"), ", audits included, since ", when(since), "."],
    { kind: "accent", mark: bar(part) });
}

const unsaved = (live, saved, untold) =>
  (!live.best_of_n && saved?.answers && live.audit_fraction
    ? `What best-of-${live.n} takes is known after the first comparison: send more requests.` : untold);

function fallback(event) {
  return h("p", { class: "alert", role: "alert" }, `Best-of-n answers again in place of ${event.replaced} since `, when(event.time), `: ${event.reason}.`);
}
