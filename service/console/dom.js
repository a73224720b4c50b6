// Elements and figures. Text is always set as text, never as markup.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function replace(host, ...children) {
  host.replaceChildren(...children.flat(Infinity).filter(Boolean));
  return host;
}

const number = (digits) => new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const whole = number(0), two = number(2), one = number(1);

// For uPlot's legend, which is empty while nothing is pointed at.
export const told = (format) => (u, value) => (value === null || value === undefined ? "" : format(value));

export const count = (value) => (value === null || value === undefined ? "–" : whole.format(value));
export const decimal = (value) => (value === null || value === undefined ? "–" : two.format(value));
export const percent = (value) => (value === null || value === undefined ? "–" : `${one.format(100 * value)} %`);
export const interval = (estimate) => `${one.format(100 * estimate.low)} to ${one.format(100 * estimate.high)} %`;

export function ago(time) {
  const seconds = Math.max(0, (Date.now() - new Date(time)) / 1000);
  if (seconds < 90) return `${whole.format(seconds)} s ago`;
  if (seconds < 5400) return `${whole.format(seconds / 60)} min ago`;
  if (seconds < 129600) return `${whole.format(seconds / 3600)} h ago`;
  return `${whole.format(seconds / 86400)} days ago`;
}

export function tile(title, value, note, kind = "") {
  return h("div", { class: `tile ${kind}` }, h("h3", {}, title), h("p", { class: "figure" }, value), h("p", { class: "note" }, note));
}

export function card(title, note, ...content) {
  const heading = h("div", {}, h("h2", {}, title), note ? h("p", { class: "note" }, note) : null);
  return h("section", { class: "card" }, h("header", { class: "row" }, heading), ...content);
}

// A bar from 0 to 1; its text says the same to those who do not see it.
export function bar(share, kind = "") {
  const fill = h("i", { class: kind });
  fill.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return h("span", { class: "bar", "aria-hidden": "true" }, fill);
}

export function empty(text) {
  return h("p", { class: "empty" }, text);
}
