// What has been logged, what each further draw is worth, and how far training is.

import { get, maybe } from "./api.js";
import { band, bound, chart, labels, line } from "./charts.js";
import { ago, bar, card, count, decimal, empty, h, percent, tile, told } from "./dom.js";

export async function load() {
  const [pairs, rounds, curve] = await Promise.all([get("admin/pairs"), get("admin/rounds"), maybe("admin/charts/best-of-k")]);
  return { pairs, rounds, curve };
}

export function render({ pairs, rounds, curve }) {
  const running = rounds.rounds.find((round) => !["finished", "failed"].includes(round.stage));
  const shown = running ?? rounds.rounds[0];
  return [
    h("div", { class: "tiles" },
      tile("Groups logged", count(pairs.groups), pairs.first ? `since ${new Date(pairs.first).toLocaleDateString()}` : "none yet"),
      tile("Fit to train on", pairs.groups ? percent(pairs.clean / pairs.groups) : "–", `${count(pairs.clean)} clean groups`, "accent"),
      tile("Best minus worst", decimal(pairs.mean_margin), "mean reward margin of a pair"),
      tile("Candidates kept", count(pairs.candidates), `${count(pairs.feedback)} words of feedback`),
      tile("To the next round", rounds.needed === null ? "–" : `${count(rounds.new_groups)} of ${count(rounds.needed)}`, rounds.waits_for)),
    h("div", { class: "two" },
      card("What each draw is worth", curve ? `${count(curve.groups)} groups of ${curve.version}, reward ${curve.reward}${stops(curve)}` : "", curve ? curveChart(curve) : empty("Two or more prompts with several draws are needed.")),
      card("Training", shown ? `${shown.run}, from ${shown.sampler}` : "", shown ? training(shown) : empty("No round has begun."))),
    h("div", { class: "two" },
      card("What the log holds", "", shares("By version", pairs.versions, pairs.groups), shares("Not trained on, by reason", pairs.unclean, pairs.groups, "amber")),
      card("Rounds", "", rounds.rounds.length ? roundTable(rounds.rounds) : empty("None yet."))),
  ];
}

const stops = (curve) => (curve.stops_at ? `; after ${curve.stops_at} draws one more adds little` : "; every draw still pays");

function curveChart(curve) {
  const { points } = curve;
  return chart({
    label: `Expected reward of the best of k draws, for k up to ${points.length}`,
    x: { label: "k, draws per answer", values: (u, values) => values.map((k) => (Number.isInteger(k) ? k : "")) },
    y: { label: "expected reward" },
    data: [points.map((p) => p.k), points.map((p) => p.reward.value), points.map((p) => p.reward.low), points.map((p) => p.reward.high)],
    make: () => ({
      scales: { x: { time: false, range: [0.5, points.length + 0.5] } },
      series: [{ label: "k", value: told(count) }, line("expected reward", "amber", { value: told(decimal), points: { show: true, size: 6 } }), bound("low"), bound("high")],
      bands: [band(3, 2, "amber-soft")],
      hooks: { draw: curve.stops_at ? [labels([{ x: curve.stops_at, y: points[curve.stops_at - 1].reward.value, text: "enough", below: true }])] : [] },
    }),
    table: {
      head: ["k", "expected reward", "the k-th draw adds", "win rate against one draw"],
      rows: points.map((p) => [count(p.k), decimal(p.reward.value), decimal(p.gain?.value), percent(p.win_rate?.value)]),
    },
  });
}

// Passes over the logged groups; what comes after them is learnt from the policy's own draws.
function passes({ epoch, epochs }) {
  if (epoch <= epochs) return `epoch ${decimal(epoch)} of ${decimal(epochs)}`;
  return `${decimal(epochs)} epochs on logged groups, and ${decimal(epoch - epochs)} on its own draws`;
}

function training(round) {
  const share = round.stage === "finished" ? 1 : round.epochs ? round.epoch / round.epochs : 0;
  const how = h("p", { class: "row" }, h("span", { class: `badge ${round.stage}` }, round.stage),
    h("span", { class: "note" }, `${passes(round)}, ${ago(round.updated)}`), bar(share, "accent"));
  if (round.curve.length < 2) return h("div", {}, how, empty("The curve comes with the first steps."));
  const column = (index) => round.curve.map((point) => point[index]);
  return h("div", {}, how, round.outcome ? h("p", {}, `${round.version ?? ""} ${round.outcome}`) : null, chart({
    label: `Margin of best over worst in training, ${decimal(round.curve.at(-1)[2])} nats of ${decimal(round.curve.at(-1)[3])}`,
    height: 220,
    x: { label: "epochs" },
    y: { label: "log-ratio margin, nats" },
    data: [column(0), column(2), column(3)],
    make: () => ({
      scales: { x: { time: false } },
      series: [{ label: "epoch", value: told(decimal) }, line("margin", "accent", { value: told(decimal) }),
        line("target", "faint", { value: told(decimal), dash: [5, 5] })],
    }),
    table: { head: ["epoch", "loss", "margin", "target"], rows: round.curve.slice(-20).map((point) => point.map(decimal)) },
  }));
}

function shares(title, counts, total, kind = "accent") {
  const entries = Object.entries(counts).sort((a, b) => b[1] - a[1]);
  if (!entries.length) return null;
  return h("div", {}, h("h3", {}, title), h("dl", { class: "shares" }, entries.map(([name, value]) => [
    h("dt", {}, name), h("dd", {}, count(value), bar(total ? value / total : 0, kind))])));
}

function roundTable(rounds) {
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, ["Run", "Stage", "Became", "Begun"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rounds.map((round) => h("tr", {}, h("th", { scope: "row" }, round.run),
      h("td", {}, h("span", { class: `badge ${round.stage}` }, round.stage)),
      h("td", {}, round.version ? `${round.version}: ${round.outcome}` : round.outcome ?? "–"), h("td", {}, ago(round.started)))))));
}
