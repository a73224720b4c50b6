// Elements and what the views are built of. Text is always set as text, never as markup.

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

// A sentence in which backticks enclose what is typed into a terminal or a settings file.
export const prose = (text) => text.split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part));

export function tile(title, value, note, { kind = "", mark = null } = {}) {
  return h("div", { class: `tile ${kind}` }, h("h2", { class: "title" }, title), h("p", { class: "figure" }, value), mark,
    h("p", { class: "note" }, note));
}

export function card(title, note, ...content) {
  const heading = h("div", {}, h("h2", {}, title), note ? h("p", { class: "note" }, note) : null);
  return h("section", { class: "card" }, h("header", { class: "row" }, heading), ...content);
}

// A bar from 0 to 1 that is as long as the figure beside it says, so that it is hidden from those to whom the figure is
// read. `par` marks a point on it.
export function bar(share, { kind = "accent", par = null } = {}) {
  const place = (element, property, value) => {
    element.style[property] = `${100 * Math.min(1, Math.max(0, value))}%`;
    return element;
  };
  return h("span", { class: "bar", "aria-hidden": "true" }, place(h("i", { class: kind }), "width", share),
    par === null ? null : place(h("b", {}), "left", par));
}

// What is shown where there is nothing yet: why, and what to do next.
export const empty = (...content) => h("p", { class: "empty" }, ...content);

export const badge = (text, kind = text) => h("span", { class: `badge ${kind}` }, text);

export const NONE = "–";

// A table whose rows become blocks where there is no room for the columns: each value that there is, after its column's
// name. The roles keep it a table for screen readers then. A column without a name holds the row's buttons.
export function table(columns, rows, kind = "") {
  const cells = (row) => row.cells.map((cell, index) => h(index ? "td" : "th",
    index ? { role: "cell", "data-column": columns[index] || null, class: cell === NONE || cell === null ? "none" : null } : { role: "rowheader", scope: "row" },
    h("div", {}, cell)));
  const name = (column) => h("th", { role: "columnheader", scope: "col" }, column || h("span", { class: "hidden" }, "Action"));
  return h("div", { class: "tabular" }, h("table", { class: kind, role: "table" },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map(name))),
    h("tbody", { role: "rowgroup" }, rows.map((row) => h("tr", { role: "row", class: row.kind ?? "" }, cells(row))))));
}
