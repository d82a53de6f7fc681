// What was decided, kept in the browser under the run's identity. Knows nothing of the document.

const REVIEW_VERSION = 1;

class ReviewError extends Error {}

/**
 * Decisions on rows; a row's own field `decision` holds the current one.
 *
 * Each is an entry of its own in the storage, so that a decision costs the same however many
 * there are, and two tabs of one run do not overwrite each other.
 */
class Decisions {
  /** `storage` is a localStorage, or null where the browser refuses one. */
  constructor(run, rows, storage) {
    this.run = run;
    this.rows = rows.filter((row) => row.reviewable);
    this.storage = storage;
    this.prefix = `medclipsam ${JSON.stringify(run)} `;
    this.steps = [];
    this.exported = true;
    this.lost = storage === null;
    this.byKey = new Map(this.rows.map((row) => [this.key(row.item, row.label), row]));
    this.load();
  }

  key(item, label) {
    return this.prefix + JSON.stringify([item, label]);
  }

  load() {
    if (!this.storage) return;
    for (const [key, row] of this.byKey) {
      const value = this.storage.getItem(key);
      if (DECISIONS.includes(value)) row.decision = value;
    }
  }

  /** Decide on rows at once: one step to undo. `pairs` is [[row, decision or ""], …], each row once. */
  decide(pairs) {
    const before = [];
    for (const [row, decision] of pairs) {
      if (!row.reviewable || row.decision === decision) continue;
      before.push([row, row.decision]);
      this.put(row, decision);
    }
    if (before.length) this.steps.push(before);
    return before.length;
  }

  /** Take the last step back; the rows that it concerned. */
  undo() {
    const step = this.steps.pop() || [];
    for (const [row, decision] of step) this.put(row, decision);
    return step.map(([row]) => row);
  }

  put(row, decision) {
    row.decision = decision;
    this.exported = false;
    if (!this.storage) return;
    try {
      if (decision) this.storage.setItem(this.key(row.item, row.label), decision);
      else this.storage.removeItem(this.key(row.item, row.label));
    } catch { // full, or switched off meanwhile
      this.lost = true;
    }
  }

  /** What another tab of this run has stored: the row that it concerns, or null. */
  follow(key, value) {
    const row = this.byKey.get(key);
    if (!row) return null;
    row.decision = DECISIONS.includes(value) ? value : "";
    return row;
  }

  /** The text of review.json. */
  toReview() {
    const decisions = this.rows
      .filter((row) => row.decision)
      .map(({ item, label, decision }) => ({ item, label, decision }));
    return JSON.stringify({ medclipsam_review: REVIEW_VERSION, run: this.run, decisions }, null, 1) + "\n";
  }

  /**
   * Merge a review.json: where it differs, the file wins; one step to undo.
   *
   * Returns { taken, same, unknown }, or null where it is of another run and `agree()` says no.
   */
  merge(text, agree) {
    const page = parseReview(text), wanted = new Map();
    let unknown = 0, same = 0;
    for (const { item, label, decision } of page.decisions) {
      const row = this.byKey.get(this.key(item, label));
      if (!row) unknown += 1;
      else if ((wanted.get(row) || decision) !== decision) throw new ReviewError(`two decisions on ${item}, ${label}`);
      else wanted.set(row, decision);
    }
    if (page.run && page.run !== this.run && !agree()) return null;
    for (const [row, decision] of wanted) same += row.decision === decision;
    return { taken: this.decide(wanted), same, unknown };
  }
}

function parseReview(text) {
  let page;
  try {
    page = JSON.parse(text);
  } catch (error) {
    throw new ReviewError(`not valid JSON: ${error.message}`);
  }
  if (!page || page.medclipsam_review !== REVIEW_VERSION || !Array.isArray(page.decisions)) {
    throw new ReviewError(`expected {"medclipsam_review": ${REVIEW_VERSION}, "decisions": […]}`);
  }
  page.decisions.forEach((entry, i) => {
    const whole = entry && typeof entry.item === "string" && typeof entry.label === "string";
    if (!whole || !DECISIONS.includes(entry.decision)) {
      throw new ReviewError(`decision ${i + 1} needs item, label and one of ${DECISIONS.join(", ")}`);
    }
  });
  return page;
}

/** localStorage if it works here, or null: it may be blocked, absent or full. */
function openStorage() {
  try {
    const storage = window.localStorage, probe = "medclipsam probe";
    storage.setItem(probe, "1");
    storage.removeItem(probe);
    return storage;
  } catch {
    return null;
  }
}
