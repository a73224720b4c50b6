// Every version, what was measured of it, what the gate said; and the two moves: promote, roll back.

import { get, post } from "./api.js";
import { badge, bar, card, empty, h, NONE, prose, table } from "./dom.js";
import { decimal, interval, percent, when } from "./format.js";
import { against, allowed, share } from "./measured.js";
import { ask, say } from "./talk.js";

const COLUMNS = ["Version", "Win rate against the base", "Against best-of-n", "Draws (k)", "Tokens saved",
  "KL, nats", "Gain recovered", "Gate", ""];
const PROMOTABLE = ["approved", "promoted", "retired"]; // others only by the command line, with --force

export async function load() {
  const [versions, aliases] = await Promise.all([get("admin/versions"), get("admin/aliases")]);
  return { versions: versions.versions, aliases };
}

export function render({ versions, aliases }, again) {
  const { champion, previous } = aliases.aliases;
  const back = previous ? h("button", { type: "button", onclick: () => rollBack(previous, again) }, `Roll back to ${previous}`) : null;
  const listed = card("Versions", `${aliases.serving.champion} answers requests now.`,
    Object.entries(aliases.refused).map(([name, reason]) => h("p", { class: "alert", role: "alert" }, `This service cannot serve ${name}: ${reason}`)),
    versions.length ? table(COLUMNS, versions.toReversed().map((version) => row(version, champion, again)), "versions") : null,
    versions.some((version) => version.kind !== "base") ? null
      : empty(prose("No version has been trained yet: send requests, and let `bonbon loop` train one from what is logged.")));
  if (back) listed.querySelector("header").append(h("div", { class: "end" }, back));
  return [listed];
}

function row(version, champion, again) {
  const { win_rate: rate, kl, recovered } = version.evaluation;
  const found = allowed(version), passed = version.verdict, is = version.name === champion;
  const figure = (value) => (value === NONE ? NONE : h("span", { class: "number" }, value));
  const measured = (value, note, mark) => [h("strong", { class: "number" }, value), mark, note ? h("span", { class: "note block" }, note) : null];
  return {
    kind: is ? "champion" : "",
    cells: [
      [h("span", { class: "version" }, version.name), " ", badge(is ? "champion" : version.state),
        h("p", { class: "note" }, version.kind === "base" ? "The base model" : [version.kind === "full" ? "Full weights" : "Adapter", ` trained from ${version.parent}, registered `, when(version.created)],
          version.loaded ? "; loaded." : "; not loaded.")],
      rate ? measured(percent(rate.value), interval(rate), bar(rate.value, { par: 0.5 })) : NONE,
      found ? measured(share(found), `${against(found)}.`, bar(found.rate.value, { par: 0.5 })) : NONE,
      figure(passed?.k ? String(passed.k) : NONE),
      passed?.k && typeof passed.saved === "number" ? measured(percent(passed.saved), null, bar(passed.saved)) : NONE,
      figure(decimal(kl?.value)),
      figure(percent(recovered?.value)),
      verdict(version),
      is || !PROMOTABLE.includes(version.state) ? null
        : h("button", { type: "button", "aria-label": `Promote ${version.name}`, onclick: () => promote(version, champion, again) }, "Promote"),
    ],
  };
}

// The gate's word, why, and what to do next where it has not approved.
function verdict({ name, kind, verdict: found }) {
  const next = (text) => h("p", { class: "note next" }, prose(text));
  const force = `\`bonbon models promote ${name} --force\``;
  if (!found) {
    return kind === "base" ? NONE
      : [badge("not judged", "open"), next(`Measure it with \`bonbon evaluate ${name}\`; then ${force} serves it.`)];
  }
  if (found.imported) {
    return [badge("imported", "open"), why("What its own gate said", found.imported.verdict ?? found),
      next(`Its figures come from another installation. Measure it here with \`bonbon evaluate ${name}\`; then ${force} serves it.`)];
  }
  if (found.passed) return [badge("passed"), why("Why", found)];
  return [badge("refused"), why("Why", found), next(`Train another version with \`bonbon loop\`, or serve this one anyway with ${force}.`)];
}

function why(title, { reasons }) {
  const said = (reasons ?? []).map((reason) => (typeof reason === "string" ? { text: reason } : reason));
  if (!said.length) return null;
  return h("details", {}, h("summary", {}, title),
    h("ul", { class: "reasons" }, said.map((reason) => h("li", { class: reason.passed === false ? "bad" : "" }, reason.text))));
}

async function promote(version, champion, again) {
  const text = "New requests go to it as soon as it is loaded and checked. Requests that are being answered finish on the version they began with.";
  if (!(await ask(`Promote ${version.name}?`, text, "Promote"))) return;
  await move("admin/promote", { version: version.name, expected: champion }, again);
}

async function rollBack(previous, again) {
  if (!(await ask(`Roll back to ${previous}?`, "It is still loaded, so that this takes effect at once.", "Roll back"))) return;
  await move("admin/rollback", undefined, again);
}

async function move(path, body, again) {
  try {
    const done = await post(path, body);
    say(done.served ? `${done.champion} answers requests now.` : `${done.champion} is promoted. ${done.serving} answers until it is loaded.`);
  } catch (error) {
    say(error.message, true);
  }
  await again();
}
