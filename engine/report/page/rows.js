"use strict";
// The rows of data.js, filtered and sorted. Knows nothing of the document.

const STATUSES = ["done", "absent", "quarantined"];
const DECISIONS = ["accept", "reject", "unsure"];

// What is told of a mask: `share` is shown in percent, `minor` left out where space is short.
const FIGURES = [
  { name: "confidence", title: "confidence", about: "one number made of the four below" },
  { name: "predicted_iou", title: "predicted IoU", brief: "pred. IoU", about: "SAM's own estimate", minor: true },
  { name: "stability", title: "stability", about: "IoU of the masks at logits ±1", minor: true },
  { name: "agreement", title: "agreement", about: "DSC of refined saliency and mask" },
  { name: "contrast", title: "contrast", about: "similarity with the prompt above the nearest other" },
  { name: "area_share", title: "area", about: "share of the picture", share: true },
  { name: "border", title: "border contact", brief: "border", about: "share of the picture's edge it covers", share: true, minor: true },
];
const SORTS = [{ name: "item", title: "name" }, ...FIGURES, { name: "area", title: "area in pixels" }];

const EVERYTHING = Object.freeze({
  text: "", label: null, status: "", reason: "", low: 0, high: 1, decision: "", sort: "item", down: false,
});

function readRow(data, values) {
  const row = {};
  for (let i = 0; i < data.columns.length; i += 1) row[data.columns[i]] = values[i];
  row.prompt = data.prompts[row.prompt] || "";
  row.masked = row.status === "done" || (row.status === "quarantined" && row.mask !== "");
  row.reviewable = row.masked || row.status === "absent";
  row.lower = row.item.toLowerCase();
  row.rank = 0;
  row.decision = "";
  return row;
}

/** Rows as objects in the order of data.js; `rank` is their place by name, 2 before 10. */
function readRows(data) {
  const rows = data.rows.map((values) => readRow(data, values));
  const names = new Intl.Collator("en", { numeric: true });
  rows.slice()
    .sort((a, b) => names.compare(a.item, b.item) || names.compare(a.label, b.label))
    .forEach((row, i) => { row.rank = i; });
  return rows;
}

/** A figure, or null where there is none: an absent outcome has a contrast only. */
function figureOf(row, name) {
  if (!row.masked && (name !== "contrast" || row.status !== "absent")) return null;
  return row[name] === undefined ? null : row[name];
}

/** low ≤ value < high; 1 as the upper end is included. */
function inRange(value, low, high) {
  if (low <= 0 && high >= 1) return true;
  return value !== null && value >= low && (value < high || high >= 1);
}

/** Whether a row fits all filters but that of decisions. */
function makeFilter(view) {
  const words = view.text.toLowerCase().split(/\s+/).filter(Boolean);
  return (row) =>
    (view.label === null || row.label === view.label) &&
    (!view.status || row.status === view.status) &&
    (!view.reason || row.reason === view.reason) &&
    inRange(figureOf(row, "confidence"), view.low, view.high) &&
    words.every((word) => row.lower.includes(word));
}

function fitsDecision(row, wanted) {
  if (!wanted) return true;
  if (!row.reviewable) return false;
  if (wanted === "undecided") return row.decision === "";
  return wanted === "decided" ? row.decision !== "" : row.decision === wanted;
}

/** Rows without the figure come last in either direction, equal ones by name. */
function makeOrder(view) {
  const sign = view.down ? -1 : 1, key = view.sort;
  if (key === "item") return (a, b) => sign * (a.rank - b.rank);
  return (a, b) => {
    const left = figureOf(a, key), right = figureOf(b, key);
    if (left === null || right === null) return (left === null) - (right === null) || a.rank - b.rank;
    return sign * (left - right) || a.rank - b.rank;
  };
}

/** Rows that fit all filters but that of decisions, in order. */
function matchRows(rows, view) {
  return rows.filter(makeFilter(view)).sort(makeOrder(view));
}

/** The next undecided row after `row`, around the end; null where none is left. */
function nextUndecided(shown, row) {
  const start = shown.indexOf(row);
  for (let step = 1; step <= shown.length; step += 1) {
    const next = shown[(start + step) % shown.length];
    if (next !== row && next.reviewable && !next.decision) return next;
  }
  return null;
}

/** How many of `rows` can be reviewed, are, and how. */
function countDecisions(rows) {
  const counts = { reviewable: 0, reviewed: 0, accept: 0, reject: 0, unsure: 0 };
  for (const row of rows) {
    if (!row.reviewable) continue;
    counts.reviewable += 1;
    if (row.decision) {
      counts.reviewed += 1;
      counts[row.decision] += 1;
    }
  }
  return counts;
}

/** Sizes of `bins` equal bins of [0, top]; the last includes its upper end. */
function binValues(values, bins, top) {
  const sizes = new Array(bins).fill(0);
  // by comparison with the ends that a filter uses, so that a bin counts what the filter shows
  for (const value of values) {
    let bin = Math.min(bins - 1, Math.max(0, Math.floor((value / top) * bins)));
    if (bin > 0 && value < binEnd(bin, bins, top)) bin -= 1;
    else if (bin < bins - 1 && value >= binEnd(bin + 1, bins, top)) bin += 1;
    sizes[bin] += 1;
  }
  return sizes;
}

const binEnd = (bin, bins, top) => Number(((bin * top) / bins).toFixed(6));
