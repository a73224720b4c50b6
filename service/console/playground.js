// One prompt, answered both ways: the n candidates as the reward ranks them, and the champion's single draw.

import { get, post } from "./api.js";
import { bar, card, decimal, empty, h, percent, replace } from "./dom.js";
import { say } from "./talk.js";

export async function load() {
  const [versions, ready] = await Promise.all([get("admin/versions"), get("health/ready")]);
  return { loaded: versions.versions.filter((version) => version.loaded).map((version) => version.name), champion: ready.serving };
}

export const still = true; // what is typed must not go with the next poll

export function render({ loaded, champion }) {
  const result = h("div", { id: "result", "aria-live": "polite" }, empty("Nothing of what is drawn here is logged or trained on."));
  const field = (id, label, input) => h("div", { class: "field" }, h("label", { for: id }, label), input);
  const prompt = h("textarea", { id: "prompt", rows: 3, required: true, maxlength: 20000, placeholder: "My lamp arrived broken. Can you help?" });
  const number = (id, value, min, max, step = 1) => h("input", { id, type: "number", value, min, max, step, required: true });
  const draws = number("n", 8, 2, 128), tokens = number("max-tokens", 64, 1, 4096), heat = number("temperature", 1, 0.1, 2, 0.1);
  const version = h("select", { id: "version" }, loaded.map((name) => h("option", { value: name, selected: name === champion }, name === champion ? `${name} (champion)` : name)));
  const button = h("button", { type: "submit", class: "primary" }, "Draw");
  const form = h("form", { class: "ask" }, field("prompt", "Prompt", prompt),
    h("div", { class: "row" }, field("n", "Candidates", draws), field("version", "Single draw of", version),
      field("max-tokens", "Longest, tokens", tokens), field("temperature", "Temperature", heat), button));
  const submit = async (event) => {
    event.preventDefault();
    if (!form.reportValidity()) return;
    button.disabled = true;
    replace(result, h("p", { class: "empty", role: "status" }, `Drawing ${draws.value} candidates and one draw…`));
    try {
      replace(result, ...show(await post("admin/playground", {
        prompt: prompt.value, n: Number(draws.value), version: version.value, max_tokens: Number(tokens.value), temperature: Number(heat.value),
      })));
    } catch (error) {
      replace(result, empty(error.message));
      say(error.message, true);
    }
    button.disabled = false;
  };
  form.addEventListener("submit", submit);
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
  });
  return [card("Playground", "Ctrl+Enter draws", form), result];
}

function show({ base, version, reward, candidates, draw, problem }) {
  const rewards = [...candidates, draw].map((one) => one.reward).filter((value) => value !== null);
  const low = Math.min(...rewards), span = Math.max(...rewards) - low || 1;
  const tokens = candidates.reduce((sum, one) => sum + one.tokens, 0);
  const answer = (one, place, kind) => h("li", { class: `answer ${kind}` },
    h("div", { class: "row" }, h("span", { class: "place" }, place),
      one.reward === null ? h("span", { class: "note" }, "not scored") : [
        h("span", {}, h("strong", {}, decimal(one.reward)), h("span", { class: "note" }, " reward")),
        h("span", {}, h("strong", {}, percent(one.win_probability)), h("span", { class: "note" }, kind === "single" ? " of them beaten" : " win probability")),
        bar((one.reward - low) / span, kind === "single" ? "accent" : "amber")],
      h("span", { class: "note end" }, `${one.tokens} tokens`)),
    h("p", { class: "text" }, one.text || "(nothing)"));
  return [
    problem ? h("p", { class: "alert", role: "alert" }, `The reward gave no ranking: ${problem}`) : null,
    h("div", { class: "two" },
      card(`Best of ${candidates.length}`, `${base}, ranked by ${reward}; ${tokens} tokens in all`,
        h("ol", { class: "answers" }, candidates.map((one, index) => answer(one, `${index + 1}`, index ? "" : "best")))),
      card("One draw", `${version}, ${draw.tokens} tokens: ${percent(draw.tokens / tokens)} of the cost`,
        h("ol", { class: "answers" }, answer(draw, "1", "single")))),
  ];
}
