// Which view is shown, when it is loaded again, and what holds for all of them: key, theme, status.

import { get, key } from "./api.js";
import { empty, h, replace } from "./dom.js";
import * as overview from "./overview.js";
import * as pairs from "./pairs.js";
import * as playground from "./playground.js";
import * as versions from "./versions.js";

const VIEWS = { overview, versions, pairs, playground };
const SECONDS = 5;
const view = document.getElementById("view"), status = document.getElementById("status");
let shown = { name: "", data: "" };

async function show({ anew = false } = {}) {
  const name = Object.hasOwn(VIEWS, location.hash.slice(1)) ? location.hash.slice(1) : "overview";
  const module = VIEWS[name], changed = name !== shown.name;
  if (!changed && !anew && module.still) return;
  if (changed) mark(name);
  try {
    const data = await module.load(), text = JSON.stringify(data);
    if (name !== (location.hash.slice(1) || "overview") && Object.hasOwn(VIEWS, location.hash.slice(1))) return;
    if (!changed && !anew && text === shown.data) return;
    const open = [...view.querySelectorAll("details")].map((one) => one.open);
    const focused = [...view.querySelectorAll("a, button, summary, input")].indexOf(document.activeElement);
    replace(view, h("h1", { class: "hidden" }, titleOf(name)), ...module.render(data, () => show({ anew: true })));
    if (!changed) restore(open, focused);
    shown = { name, data: text };
  } catch (error) {
    shown = { name, data: "" };
    replace(view, h("h1", { class: "hidden" }, titleOf(name)), empty(error.message));
    if (error.status === 401 || error.status === 403) askForKey();
  }
}

// A view that is loaded again keeps what was open and where the keyboard was.
function restore(open, focused) {
  [...view.querySelectorAll("details")].forEach((one, index) => (one.open = open[index] ?? false));
  if (focused >= 0) view.querySelectorAll("a, button, summary, input")[focused]?.focus({ preventScroll: true });
}

const links = [...document.querySelectorAll("nav a")];
const titleOf = (name) => links.find((link) => link.hash === `#${name}`).textContent;

function mark(name) {
  for (const link of links) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  view.setAttribute("aria-label", titleOf(name));
  document.title = `${titleOf(name)} · bonbon console`;
}

// What has the role "status" is read out whenever it is set.
function tell(text, kind) {
  if (status.textContent !== text) status.textContent = text;
  status.className = `pill ${kind}`;
}

async function look() {
  try {
    const ready = await get("health/ready");
    const bad = ready.status !== "ready";
    tell(bad ? `not ready: ${ready.reason}` : "ready", bad ? "bad" : "good");
  } catch (error) {
    tell(error.message, "bad");
  }
}

const dialog = document.getElementById("key-dialog"), field = document.getElementById("key-field");

function askForKey() {
  if (dialog.open) return;
  field.value = key.get();
  dialog.returnValue = "cancel";
  dialog.showModal();
}

dialog.addEventListener("close", () => {
  if (dialog.returnValue === "save") {
    key.set(field.value.trim());
    show({ anew: true });
  }
  field.value = "";
});
document.getElementById("key").addEventListener("click", askForKey);
// Enter in the field uses the key; without this it would press the first button, which cancels.
field.addEventListener("keydown", (event) => {
  if (event.key === "Enter") {
    event.preventDefault();
    dialog.close("save");
  }
});

const THEMES = ["auto", "light", "dark"], button = document.getElementById("theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function setTheme(theme) {
  localStorage.setItem("bonbon theme", theme);
  document.documentElement.dataset.theme = theme === "auto" ? (prefersDark.matches ? "dark" : "light") : theme;
  button.textContent = `Theme: ${theme}`;
  if (shown.name && !VIEWS[shown.name].still) show({ anew: true });
}

const theme = () => (THEMES.includes(localStorage.getItem("bonbon theme")) ? localStorage.getItem("bonbon theme") : "auto");
button.addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]));
prefersDark.addEventListener("change", () => setTheme(theme()));

async function watch() {
  if (!document.hidden && !dialog.open) await Promise.all([look(), show()]);
  setTimeout(watch, 1000 * SECONDS);
}

// Its address would be taken for the name of a view.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  view.focus();
});

setTheme(theme());
addEventListener("hashchange", () => {
  view.focus({ preventScroll: true }); // the keyboard goes on in the view, which screen readers then name
  show();
});
watch();
