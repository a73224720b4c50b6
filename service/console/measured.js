// What an evaluation says of answering with as many draws as the gate allows.

import { draws, interval, percent } from "./format.js";

// The gate's k, one draw where it has not approved; null where nothing was measured, or by an older release.
export function allowed(version) {
  const { best_of_k: curve, base, n } = version?.evaluation ?? {};
  const k = version?.verdict?.k ?? 1;
  const found = (curve ?? []).find((one) => one.k === k);
  if (!found?.win_rate_best_of_n) return null;
  const opponent = `${draws(n)} of ${base}`;
  return { k, approved: Boolean(version.verdict?.k), rate: found.win_rate_best_of_n, opponent, saved: version.verdict?.saved ?? null };
}

export const against = ({ k, rate, opponent }) =>
  `${draws(k)} against ${opponent}; 95% interval ${interval(rate)}`.replace(/^./, (first) => first.toUpperCase());

export const share = (found) => percent(found?.rate.value);

const GATED = ["win_rate_best_of_n", "win_rate_served"];

// The win rate that the lower bound has to reach by the gate's settings of that time.
export const threshold = (version) =>
  (version?.verdict?.reasons ?? []).find((reason) => GATED.includes(reason.check))?.threshold ?? null;
