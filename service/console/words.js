// What the names that the service stores mean to people.

const STAGES = {
  snapshot: "collecting data", training: "training", evaluating: "evaluating", finished: "finished", failed: "failed",
};
const REASONS = {
  single: "only one draw",
  degraded: "not scored: the reward failed or was late",
  tied: "all candidates have the same reward",
  sampling: "drawn with other sampling settings",
  reward: "ranked by a tenant's own reward",
  repeated: "repeats an earlier request",
  aborted: "a candidate was cut off",
};

export const stageName = (stage) => STAGES[stage] ?? stage;
export const reasonName = (reason) => REASONS[reason] ?? reason;

// What became of a round's version, as a sentence; null while the round is at work.
export function outcomeOf({ version, outcome }) {
  if (!outcome || !version) return outcome;
  if (outcome === "promoted") return `${version} was promoted.`;
  if (outcome === "the gate refused it") return `The gate refused ${version}.`;
  if (outcome === "not to be promoted by itself") return `${version} was left for an operator to promote.`;
  return `${version}: ${outcome}`;
}

// The names that the policy has while it is being trained, which nobody chose, count as one.
export function byVersion(counts) {
  const named = {};
  for (const [name, value] of Object.entries(counts)) {
    const shown = /^round-[0-9a-f]{32}-\d+$/.test(name) ? "versions in training" : name;
    named[shown] = (named[shown] ?? 0) + value;
  }
  return named;
}
