// What an evaluation says of answering with as many draws as the gate allows.

import { draws, interval, percent } from "./format.js";

// Whether best-of-n of the base answered when the version was measured. Evaluations of older releases then have its
// comparison with best-of-n under the name of what was served.
const servedBestOfN = ({ served, served_k: k, base, n }) => served === base && k === n;

// The win rates against best-of-n of the base, by k; none where they were not measured.
export function againstBestOfN(evaluation) {
  const rates = (evaluation?.best_of_k ?? []).map((one) =>
    ({ k: one.k, rate: one.win_rate_best_of_n ?? (servedBestOfN(evaluation) ? one.win_rate_served : null) }));
  return rates.every((one) => one.rate) ? rates : [];
}

// The gate's k, one draw where it has not approved; null where nothing was measured.
export function allowed(version) {
  const { base, n } = version?.evaluation ?? {};
  const k = version?.verdict?.k ?? 1;
  const found = againstBestOfN(version?.evaluation).find((one) => one.k === k);
  if (!found) return null;
  const opponent = `${draws(n)} of ${base}`;
  return { k, approved: Boolean(version.verdict?.k), rate: found.rate, opponent };
}

export const against = ({ k, rate, opponent }) =>
  `${draws(k)} against ${opponent}; 95% interval ${interval(rate)}`.replace(/^./, (first) => first.toUpperCase());

export const share = (found) => percent(found?.rate.value);

// The win rate against best-of-n that the lower bound had to reach; null where the gate compared with something else.
export function threshold(version) {
  const reasons = version?.verdict?.reasons ?? [];
  const check = servedBestOfN(version?.evaluation ?? {}) ? ["win_rate_best_of_n", "win_rate_served"] : ["win_rate_best_of_n"];
  return reasons.find((reason) => check.includes(reason.check))?.threshold ?? null;
}
