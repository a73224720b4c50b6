// Questions and news.

import { h } from "./dom.js";

const find = (id) => document.getElementById(id);

// Whether the person said yes; Escape is a no.
export function ask(title, text, yes) {
  const dialog = find("ask-dialog");
  find("ask-title").textContent = title;
  find("ask-text").textContent = text;
  find("ask-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

export function say(text, bad = false) {
  document.querySelector(".news")?.remove();
  const news = h("p", { class: `news ${bad ? "bad" : ""}`, role: bad ? "alert" : "status" }, text);
  document.body.append(news);
  setTimeout(() => news.remove(), 8000);
}
