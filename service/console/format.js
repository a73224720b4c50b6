// Numbers and times as people read them.

import { h, NONE } from "./dom.js";

const number = (digits, style = "decimal") =>
  new Intl.NumberFormat("en", { style, minimumFractionDigits: digits, maximumFractionDigits: digits });
const whole = number(0), two = number(2), share = number(1, "percent");
const none = (value) => value === null || value === undefined;

export const count = (value) => (none(value) ? NONE : whole.format(value));
export const decimal = (value) => (none(value) ? NONE : two.format(value));
export const percent = (value) => (none(value) ? NONE : share.format(value));
export const interval = ({ low, high }) => `${percent(low)} to ${percent(high)}`;
export const plural = (value, one, more = `${one}s`) => `${count(value)} ${value === 1 ? one : more}`;

// What an answer is made of.
export const draws = (k) => (k === 1 ? "one draw" : `the best of ${k} draws`);

// A value of a chart's legend, which is empty while nothing is pointed at.
export const told = (format) => (u, value) => (none(value) ? "" : format(value));

const local = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

// In the viewer's own form and time zone; the exact time in UTC shows when it is pointed at.
export function when(time) {
  const exact = new Date(time).toISOString();
  return h("time", { datetime: exact, title: `${exact.slice(0, 10)} ${exact.slice(11, 23)} UTC` }, local.format(new Date(time)));
}
