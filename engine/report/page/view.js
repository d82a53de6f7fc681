// A view (filters and order) as the URL's hash. Knows nothing of the document.

const HASH_NAMES = { text: "q", label: "label", status: "status", reason: "reason", low: "min", high: "max", decision: "decision" };

/** Only what differs from the default, so that the hash of the plain sheet is empty. */
function viewToHash(view, reviewing) {
  const params = new URLSearchParams();
  for (const [key, name] of Object.entries(HASH_NAMES)) {
    if (view[key] !== EVERYTHING[key]) params.set(name, view[key]);
  }
  const sort = (view.down ? "-" : "") + view.sort;
  if (sort !== EVERYTHING.sort) params.set("sort", sort);
  if (reviewing) params.set("review", "1");
  return params.toString();
}

/** The view of a hash that anybody may have typed: what this run does not have is passed over. */
function viewFromHash(hash, choices) {
  const params = new URLSearchParams(hash.replace(/^#/, ""));
  const known = (name, all) => (all.includes(params.get(name)) ? params.get(name) : null);
  const sort = params.get("sort") || EVERYTHING.sort, key = sort.replace(/^-/, "");
  const sorted = SORTS.some((entry) => entry.name === key);
  return {
    text: params.get("q") || "",
    label: known("label", choices.labels),
    status: known("status", STATUSES) || "",
    reason: known("reason", choices.reasons) || "",
    low: parseBound(params.get("min"), 0),
    high: parseBound(params.get("max"), 1),
    decision: known("decision", ["undecided", "decided", ...DECISIONS]) || "",
    sort: sorted ? key : EVERYTHING.sort,
    down: sorted && sort.startsWith("-"),
  };
}

function wantsReview(hash) {
  return new URLSearchParams(hash.replace(/^#/, "")).get("review") === "1";
}

/** A number in [0, 1] from a field; `otherwise` where it holds none. */
function parseBound(text, otherwise) {
  const value = text === null || text.trim() === "" ? NaN : Number(text);
  return Number.isFinite(value) ? Math.min(1, Math.max(0, value)) : otherwise;
}

function isFiltered(view) {
  return Object.keys(HASH_NAMES).some((key) => view[key] !== EVERYTHING[key]);
}
