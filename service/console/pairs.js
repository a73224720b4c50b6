// What has been logged, what each further draw is worth, and how far training is.

import { get, maybe } from "./api.js";
import { band, bound, chart, labels, line } from "./charts.js";
import { badge, bar, card, empty, h, NONE, prose, table, tile } from "./dom.js";
import { count, decimal, percent, plural, told, when } from "./format.js";
import { byVersion, outcomeOf, reasonName, stageName } from "./words.js";

export async function load() {
  const [pairs, rounds, curve] = await Promise.all([get("admin/pairs"), get("admin/rounds"), maybe("admin/charts/best-of-k")]);
  return { pairs, rounds, curve };
}

const SEND = "Send requests to this service: every answer that is chosen from several draws is logged as a group.";
const TRAIN = "No round has begun: run `bonbon loop`, which begins one when there is enough data, or `bonbon loop --now`.";

export function render({ pairs, rounds: { rounds, needed, new_groups: fresh, waits_for: waitsFor }, curve }) {
  const shown = rounds.find((round) => !["finished", "failed"].includes(round.stage)) ?? rounds[0];
  return [
    h("div", { class: "tiles" },
      tile("Groups logged", count(pairs.groups), pairs.first ? ["Since ", when(pairs.first), "."] : "Send a request to log the first one."),
      tile("Usable for training", pairs.groups ? percent(pairs.clean / pairs.groups) : NONE, `${plural(pairs.clean, "group")} in all.`,
        { kind: "accent", mark: pairs.groups ? bar(pairs.clean / pairs.groups) : null }),
      tile("Mean reward margin", decimal(pairs.mean_margin), "Between the best and the worst candidate of each of the newest groups."),
      tile("Candidates logged", count(pairs.candidates), `Users have rated ${plural(pairs.feedback, "answer")}.`),
      tile("Next round", needed === null ? NONE : `${count(fresh)} of ${count(needed)}`, prose(waitsFor),
        { mark: needed ? bar(fresh / needed) : null })),
    h("div", { class: "two" },
      card("What each draw is worth", curve ? `${plural(curve.groups, "group")} of ${curve.version}, scored by ${curve.reward}. ${stops(curve)}` : null,
        curve ? curveChart(curve) : empty("Groups of two prompts or more are needed to see it: send requests.")),
      card("Training", shown ? [`${shown.run} started from ${shown.sampler} on `, when(shown.started), "."] : null,
        shown ? training(shown) : empty(prose(TRAIN)))),
    card("What the log holds", null, pairs.groups
      ? h("div", { class: "two" },
        shares("Groups by version", byVersion(pairs.versions), pairs.groups),
        shares("Groups that training leaves out, by reason", pairs.unclean, pairs.groups, "amber", reasonName))
      : empty(SEND)),
    card("Rounds of training", null, rounds.length ? roundTable(rounds) : empty(prose(TRAIN))),
  ];
}

const stops = ({ stops_at: k }) => (k ? `One more draw than ${k} adds little.` : "Every draw adds to the expected reward.");

function curveChart({ points, stops_at: enough }) {
  return chart({
    label: `Expected reward of the best of k draws, for k up to ${points.length}`,
    x: { label: "k, draws per answer", values: (u, values) => values.map((k) => (Number.isInteger(k) ? k : "")) },
    y: { label: "expected reward" },
    data: [points.map((p) => p.k), points.map((p) => p.reward.value), points.map((p) => p.reward.low), points.map((p) => p.reward.high)],
    make: () => ({
      scales: { x: { time: false, range: [0.5, points.length + 0.5] } },
      series: [{ label: "k", value: told(count) }, line("expected reward", "amber", { value: told(decimal), points: { show: true, size: 6 } }), bound("low"), bound("high")],
      bands: [band(3, 2, "amber-soft")],
      hooks: { draw: enough ? [labels([{ x: enough, y: points[enough - 1].reward.value, text: "enough", below: true }])] : [] },
    }),
    table: {
      head: ["k", "Expected reward", "Added by the last draw", "Win rate against one draw"],
      rows: points.map((p) => [count(p.k), decimal(p.reward.value), decimal(p.gain?.value), percent(p.win_rate?.value)]),
    },
  });
}

// Epochs pass over the logged groups; what comes after them is learnt from the policy's own draws.
function passes({ epoch, epochs }) {
  if (epoch <= epochs) return `epoch ${decimal(epoch)} of ${decimal(epochs)}`;
  return `${decimal(epochs)} epochs on logged groups, and ${decimal(epoch - epochs)} on its own draws`;
}

function training(round) {
  const { stage, epoch, epochs, curve } = round;
  const known = stage === "training" && epochs && epoch <= epochs;
  const how = h("div", { class: "row" }, badge(stageName(stage), stage),
    h("span", { class: "note" }, `${passes(round)}; updated `, when(round.updated)), known ? bar(epoch / epochs) : null);
  if (curve.length < 2) return h("div", {}, how, empty("The chart appears after the first steps of training: wait for them."));
  const column = (index) => curve.map((point) => point[index]);
  return h("div", {}, how, outcomeOf(round) ? h("p", { class: "outcome" }, outcomeOf(round)) : null, chart({
    label: `Margin of best over worst in training: ${decimal(curve.at(-1)[2])} nats, with a target of ${decimal(curve.at(-1)[3])}`,
    height: 220,
    x: { label: "epochs" },
    y: { label: "log-ratio margin, nats" },
    data: [column(0), column(2), column(3)],
    make: () => ({
      scales: { x: { time: false } },
      series: [{ label: "epoch", value: told(decimal) }, line("margin", "accent", { value: told(decimal) }),
        line("target", "faint", { value: told(decimal), dash: [5, 5] })],
    }),
    table: { head: ["Epoch", "Loss", "Margin", "Target"], rows: curve.slice(-20).map((point) => point.map(decimal)) },
  }));
}

function shares(title, counts, total, kind = "accent", name = (key) => key) {
  const entries = Object.entries(counts).sort((a, b) => b[1] - a[1]);
  return h("div", {}, h("h3", {}, title), entries.length
    ? h("dl", { class: "shares" }, entries.map(([key, value]) => h("div", {},
      h("dt", {}, name(key)), h("dd", {}, `${count(value)} (${percent(value / total)})`, bar(value / total, { kind })))))
    : h("p", { class: "note" }, "None."));
}

function roundTable(rounds) {
  return table(["Run", "Started from", "Stage", "Outcome", "Started", "Updated"], rounds.map((round) => ({
    cells: [round.run, round.sampler, badge(stageName(round.stage), round.stage), outcomeOf(round) ?? NONE, when(round.started), when(round.updated)],
  })), "rounds");
}
