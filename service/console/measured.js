// What an evaluation says of answering with as many draws as the gate allows.

import { interval, percent } from "./dom.js";

// The gate's k, one draw where it has not approved; null where nothing was measured, or by an older release.
export function allowed(version) {
  const { best_of_k: curve, served, served_k: draws } = version?.evaluation ?? {};
  const k = version?.verdict?.k ?? 1;
  const found = (curve ?? []).find((one) => one.k === k);
  if (!found) return null;
  const opponent = draws > 1 ? `best of ${draws} of ${served}` : `one draw of ${served}`;
  return { k, approved: Boolean(version.verdict?.k), rate: found.win_rate_served, opponent, saved: version.verdict?.saved ?? null };
}

export const draws = (k) => (k === 1 ? "one draw" : `best of ${k}`);

export const against = ({ k, rate, opponent }) => `${draws(k)} against ${opponent}, ${interval(rate)}`;

export const share = (found) => (found ? percent(found.rate.value) : "–");
