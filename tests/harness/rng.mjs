// Chance that can be had again: the same words make the same numbers.

/// A generator of its own for each purpose: `rng(seed, "faults")`. (FNV-1a makes a number of the words, mulberry32 goes on.)
export function rng(...words) {
  let state = 0x811c9dc5;
  for (const char of words.join("/")) state = Math.imul(state ^ char.codePointAt(0), 0x01000193);
  const next = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  const below = (n) => Math.floor(next() * n);
  return {
    below,
    between: (low, high) => low + next() * (high - low),
    chance: (share) => next() < share,
    pick: (list) => list[below(list.length)],
    /// One of the keys of `weights`, each as often as its weight says.
    weighed(weights) {
      let left = next() * Object.values(weights).reduce((sum, weight) => sum + weight, 0);
      return Object.keys(weights).find((key) => (left -= weights[key]) < 0) ?? Object.keys(weights)[0];
    },
  };
}
