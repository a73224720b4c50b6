// One prompt answered both ways: n candidates of the base as the reward ranks them, beside one draw of a version.

import { ApiError, events, get } from "./api.js";
import { bar, card, empty, h, replace } from "./dom.js";
import { decimal, percent, plural } from "./format.js";
import { say } from "./talk.js";

export async function load() {
  const [versions, ready] = await Promise.all([get("admin/versions"), get("health/ready")]);
  return { loaded: versions.versions.filter((version) => version.loaded).map((version) => version.name), champion: ready.serving };
}

export const still = true; // what is typed must not go with the next poll

export function render({ loaded, champion }) {
  const result = h("div", { id: "result", "aria-live": "polite" }, empty("Type a prompt and press Draw. Nothing that is drawn here is logged or used for training."));
  const field = (id, label, input) => h("div", { class: "field" }, h("label", { for: id }, label), input);
  const prompt = h("textarea", { id: "prompt", rows: 3, required: true, maxlength: 20000, placeholder: "My lamp arrived broken. Can you help?" });
  const number = (id, value, min, max, step = 1) => h("input", { id, type: "number", value, min, max, step, required: true });
  const draws = number("n", 8, 2, 128), tokens = number("max-tokens", 64, 1, 4096), heat = number("temperature", 1, 0.1, 2, 0.1);
  const version = h("select", { id: "version" }, loaded.map((name) => h("option", { value: name, selected: name === champion }, name === champion ? `${name} (champion)` : name)));
  const button = h("button", { type: "submit", class: "primary" }, "Draw");
  const form = h("form", { class: "ask" }, field("prompt", "Prompt", prompt),
    h("div", { class: "row" }, field("n", "Candidates", draws), field("version", "One draw of", version),
      field("max-tokens", "Maximum tokens", tokens), field("temperature", "Temperature", heat), button));
  const submit = async (event) => {
    event.preventDefault();
    if (!form.reportValidity()) return;
    button.disabled = true;
    const written = h("p", { class: "text" });
    replace(result, h("p", { class: "empty", role: "status" }, `Drawing ${draws.value} candidates of the base, and one draw of ${version.value}…`),
      card("One draw", version.value, h("ul", { class: "answers" }, h("li", { class: "answer single", "aria-live": "off" }, written))));
    try {
      let played = null;
      for await (const event of events("admin/playground", {
        prompt: prompt.value, n: Number(draws.value), version: version.value, max_tokens: Number(tokens.value), temperature: Number(heat.value), stream: true,
      })) {
        written.append(event.text ?? "");
        played = event.played ?? played;
      }
      if (!played) throw new ApiError(0, "The service stopped before the answers were complete. Try again.");
      replace(result, ...show(played));
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
  return [card("Playground", "Press Ctrl+Enter in the prompt to draw.", form), result];
}

function show({ base, version, reward, candidates, draw, problem }) {
  const tokens = candidates.reduce((sum, one) => sum + one.tokens, 0);
  const answer = (one, place, kind) => h("li", { class: `answer ${kind}` },
    h("div", { class: "row" }, place ? h("span", { class: "place" }, place) : null,
      one.reward === null ? h("span", { class: "note" }, "not scored") : [
        h("span", {}, h("span", { class: "note" }, "reward "), h("strong", {}, decimal(one.reward))),
        h("span", {}, h("span", { class: "note" }, kind === "single" ? "beats " : "win probability "), h("strong", {}, percent(one.win_probability)),
          kind === "single" ? h("span", { class: "note" }, " of the candidates") : null),
        bar(one.win_probability, { kind: kind === "single" ? "accent" : "amber" })],
      h("span", { class: "note end" }, plural(one.tokens, "token"))),
    h("p", { class: "text" }, one.text || "(The answer is empty.)"));
  return [
    problem ? h("p", { class: "alert", role: "alert" }, `The reward could not rank the answers: ${problem}`) : null,
    h("div", { class: "two ragged" },
      card(`Best of ${candidates.length}`, `${base}, ranked by ${reward}; ${plural(tokens, "token")} in all`,
        h("ol", { class: "answers" }, candidates.map((one, index) => answer(one, `${index + 1}`, index ? "" : "best")))),
      card("One draw", `${version}; ${plural(draw.tokens, "token")}, which are ${percent(draw.tokens / tokens)} of the tokens of best-of-${candidates.length}`,
        h("ul", { class: "answers" }, answer(draw, null, "single")))),
  ];
}
