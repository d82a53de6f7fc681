// One outcome as large as the window allows, with all its figures.

function showLarge(row, reasons, place) {
  $("large-place").textContent = place;
  $("large-name").replaceChildren(make("bdi", "", row.item));
  $("large-tags").replaceChildren(
    make("span", "", row.label), make("span", row.status, row.status),
    make("span", `badge ${row.decision}`, DECIDED[row.decision] || ""),
  );
  markDecide($("large-decide"), row);
  if ($("large").shown === row) return; // only its decision has changed
  $("large").shown = row;
  $("large-stage").replaceChildren(makePicture(row, reasons));
  if ($("large-stage").firstChild.tagName === "IMG") $("large-stage").firstChild.alt = `${row.label} in ${row.item}`;
  $("large-about").replaceChildren(...makeDetails(row, reasons));
}

function makeDetails(row, reasons) {
  const parts = [];
  for (const text of [explain(row, reasons), row.stage && !row.reviewable ? `stage ${row.stage}` : "", row.message]) {
    if (text) parts.push(make("p", "why", text));
  }
  if (row.geometry) parts.push(make("p", "why", `geometry not known: ${row.geometry}`));
  if (row.prompt) {
    const prompt = make("p", "prompt");
    prompt.append(make("span", "faint", "prompt "), make("bdi", "", row.prompt));
    parts.push(prompt);
  }
  const list = make("dl");
  for (const figure of FIGURES) {
    if (figureOf(row, figure.name) !== null) list.append(makeDetail(figure.title, figure.about, figureText(row, figure)));
  }
  if (row.masked) {
    list.append(makeDetail("area in pixels", row.frames > 1 ? "all frames together" : "", count(row.area)));
    list.append(makeDetail("boxes", "", count(row.boxes)));
  }
  if (row.frames > 1) list.append(makeDetail("frames", "the picture shows that with the largest mask", count(row.frames)));
  if (list.children.length) parts.push(list);
  if (row.mask) parts.push(makeMaskLink(row));
  return parts;
}

function makeDetail(title, about, text) {
  const pair = make("div"), name = make("dt", "", title);
  if (about) name.append(make("small", "", about));
  pair.append(name, make("dd", "number", text));
  return pair;
}

function makeMaskLink(row) {
  const link = make("a", "", "Open the mask file");
  Object.assign(link, { href: row.mask, target: "_blank", rel: "noopener noreferrer" });
  const holder = make("p");
  holder.append(link);
  return holder;
}

/** Load a picture before it is asked for. */
function preload(row) {
  if (row && row.preview) new Image().src = row.preview;
}
