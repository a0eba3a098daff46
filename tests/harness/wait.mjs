// Waiting for something to become true, with a name for it and an end.
export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/// Calls `probe` until it returns something truthy, and returns that. A probe that throws is asked again;
/// its last word is in the error that is thrown after `within` ms.
export async function eventually(what, probe, { within = 10_000, every = 25 } = {}) {
  const end = performance.now() + within;
  let last = "never true";
  for (;;) {
    try {
      const answer = await probe();
      if (answer) return answer;
      last = "never true";
    } catch (error) {
      last = error.message;
    }
    if (performance.now() > end) throw new Error(`not within ${within} ms: ${what} (${last})`);
    await sleep(every);
  }
}

/// The promise's value, or an error that names what was waited for.
export async function within(ms, what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${ms} ms: ${what}`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
