// Every version, what was measured of it, what the gate said; and the two moves: promote, roll back.

import { get, post } from "./api.js";
import { ago, bar, card, decimal, empty, h, interval, percent } from "./dom.js";
import { against, allowed, share } from "./measured.js";
import { ask, say } from "./talk.js";

export async function load() {
  const [versions, aliases] = await Promise.all([get("admin/versions"), get("admin/aliases")]);
  return { versions: versions.versions, aliases };
}

export function render({ versions, aliases }, again) {
  const { champion, previous } = aliases.aliases;
  const back = previous ? h("button", { type: "button", onclick: () => rollBack(previous, again) }, `Roll back to ${previous}`) : null;
  const listed = card("Versions", `${aliases.serving.champion} answers now`,
    Object.entries(aliases.refused).map(([name, reason]) => h("p", { class: "alert", role: "alert" }, `${name} is not served: ${reason}`)),
    versions.length ? h("div", { class: "scroll" }, h("table", { class: "versions" },
      h("thead", {}, h("tr", {}, ["Version", "Win rate against the base", "k", "Tokens saved", "Against what was served", "KL, nats", "Gain recovered", "Gate", ""].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, versions.toReversed().map((version) => row(version, champion, again))))) : empty("None yet."));
  if (back) listed.querySelector("header").append(h("div", { class: "end" }, back));
  return [listed];
}

function row(version, champion, again) {
  const { win_rate: rate, kl, recovered } = version.evaluation;
  const found = allowed(version);
  const is = version.name === champion;
  return h("tr", { class: is ? "champion" : "" },
    h("th", { scope: "row" },
      h("span", { class: "version" }, version.name), " ", badge(is ? "champion" : version.state),
      h("p", { class: "note" }, version.kind === "base" ? "the base" : `${version.kind} of ${version.parent}, ${ago(version.created)}`,
        version.loaded ? ", loaded" : "")),
    h("td", {}, rate ? [h("strong", {}, percent(rate.value)), h("span", { class: "note block" }, interval(rate)), bar(rate.value, "accent")] : "–"),
    h("td", { class: "number" }, found?.approved ? String(found.k) : "–"),
    h("td", { class: "number" }, found?.approved ? percent(found.saved) : "–"),
    h("td", {}, found ? [h("strong", {}, share(found)), h("span", { class: "note block" }, against(found))] : "–"),
    h("td", { class: "number" }, kl ? decimal(kl.value) : "–"),
    h("td", { class: "number" }, recovered ? percent(recovered.value) : "–"),
    h("td", {}, verdict(version.verdict)),
    h("td", { class: "end" }, is ? null : h("button", { type: "button", onclick: () => promote(version, champion, again) }, "Promote")));
}

const badge = (state) => h("span", { class: `badge ${state}` }, state);

function verdict(found) {
  if (!found) return h("span", { class: "note" }, "not judged");
  const title = found.passed ? "passed" : "refused";
  const reasons = (found.reasons ?? []).map((reason) => (typeof reason === "string" ? { text: reason } : reason));
  if (!reasons.length) return badge(title);
  return h("details", {}, h("summary", {}, badge(title), " why"),
    h("ul", { class: "reasons" }, reasons.map((reason) => h("li", { class: reason.passed === false ? "bad" : "" }, reason.text))));
}

async function promote(version, champion, again) {
  const forced = version.kind !== "base" && version.verdict?.passed !== true;
  const text = forced
    ? "The gate has not approved it, so the service will refuse unless it was promoted before."
    : "New requests go to it as soon as it is loaded and checked; those in flight end on the version they began with.";
  if (!(await ask(`Promote ${version.name}?`, text, "Promote"))) return;
  await move("admin/promote", { version: version.name, expected: champion }, again);
}

async function rollBack(previous, again) {
  if (!(await ask(`Roll back to ${previous}?`, "It is still loaded, so this takes effect at once.", "Roll back"))) return;
  await move("admin/rollback", undefined, again);
}

async function move(path, body, again) {
  try {
    const done = await post(path, body);
    say(done.served ? `${done.champion} answers now` : `${done.champion} is promoted; ${done.serving} answers until it is loaded`);
  } catch (error) {
    say(error.message, true);
  }
  await again();
}
