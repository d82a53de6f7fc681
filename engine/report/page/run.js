// The head of the page: counts, facts, figures against the truth.

function duration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${count(Math.floor(minutes / 60))} h ${minutes % 60} min`;
}

function plain(value, name) {
  if (value === null) return "n/a";
  if (typeof value === "number") {
    if (name === "seconds") return duration(value);
    return Number.isInteger(value) ? count(value) : String(+value.toPrecision(4));
  }
  if (Array.isArray(value)) return value.map((entry) => plain(entry)).join(" · ");
  if (typeof value === "object") return Object.entries(value).map(([key, entry]) => `${key} ${plain(entry, key)}`).join(", ");
  return String(value);
}

/** Whether a fact says nothing: null, an empty text, or a list or object of such. */
function isEmpty(value) {
  if (value === null || value === "") return true;
  return typeof value === "object" && Object.values(value).every(isEmpty);
}

function showRun(data) {
  $("title").textContent = data.title;
  document.title = `${data.title} · medclipsam`;
  const sizes = STATUSES.map((status) => data.counts[status] || 0);
  const total = sizes.reduce((sum, size) => sum + size, 0);
  for (const [name, size] of [["outcomes", total], ...STATUSES.map((status, i) => [status, sizes[i]])]) {
    const tile = make("div");
    tile.append(make("b", name, count(size)), make("span", "", name));
    $("tally").append(tile);
  }
  STATUSES.forEach((status, i) => {
    const part = make("div", status);
    part.style.width = `${total ? (100 * sizes[i]) / total : 0}%`;
    $("share").append(part);
  });
  showFacts(data.facts.filter(([, value]) => !isEmpty(value)));
}

function showFacts(facts) {
  for (const [name, value] of facts) {
    const pair = make("div");
    pair.append(make("dt", "", name === "seconds" ? "duration" : name.replaceAll("_", " ")), makeFact(name, value));
    $("facts").append(pair);
  }
  $("facts").hidden = !facts.length;
}

function makeFact(name, value) {
  const cell = make("dd");
  if (typeof value !== "object" || Array.isArray(value)) {
    cell.textContent = plain(value, name);
    return cell;
  }
  const entries = Object.entries(value).filter(([, entry]) => !isEmpty(entry));
  if (entries.some(([, entry]) => String(entry).length > 20)) cell.className = "lines";
  for (const [key, entry] of entries) {
    const pair = make("span");
    pair.append(make("i", "", `${key} `), plain(entry, key));
    cell.append(pair);
  }
  return cell;
}

const SCORES = { dice: "DSC", iou: "IoU", nsd: "NSD", hd95: "HD95", auc: "AUC of saliency" };

function showEvaluation(evaluation) {
  if (!evaluation) return;
  $("evaluation").hidden = false;
  const known = Object.keys(SCORES).filter((name) => !isEmpty(evaluation.overall[name]?.mean));
  const titles = known.map((name) => (name === "nsd" ? `NSD at ${evaluation.tolerance}` : SCORES[name]));
  const heads = ["label", "masks", "missing", "unreadable", ...titles];
  heads.forEach((name, i) => {
    const head = make("th", i ? "number" : "", name);
    head.scope = "col";
    $("evaluation-head").append(head);
  });
  const lines = evaluation.labels.length > 1 ? [...evaluation.labels, evaluation.overall] : evaluation.labels;
  for (const line of lines) $("evaluation-rows").append(makeScores(line, known, line === evaluation.overall));
  let note = "Means with their 95 % bootstrap interval. Missing and unreadable masks count as 0, and are undefined in HD95, as is every infinite distance. HD95 and the tolerance of NSD are in mm where the spacing is known, in pixels elsewhere.";
  if (known.includes("auc")) note += " AUC is undefined without map and for an empty or full truth.";
  if (evaluation.unmatched) note += ` ${count(evaluation.unmatched)} predictions without truth are not scored.`;
  $("evaluation-note").textContent = note;
}

function makeScores(line, known, isTotal) {
  const row = make("tr", isTotal ? "total" : "");
  row.append(make("td", "", line.label));
  for (const name of ["n", "missing", "unreadable"]) row.append(make("td", "number", count(line[name])));
  for (const name of known) {
    const { mean, low, high, undefined: without } = line[name], digits = name === "hd95" ? 2 : 3;
    const cell = make("td", "number", number(mean, digits));
    if (!isEmpty(low)) cell.append(make("small", "", `${number(low, digits)} to ${number(high, digits)}`));
    if (without) cell.append(make("small", "", `${count(without)} undefined`));
    row.append(cell);
  }
  return row;
}
