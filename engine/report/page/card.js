// Elements made of rows. Names, prompts and messages come from untrusted archives: they
// enter the page as text nodes and attributes only, never as markup.

const $ = (id) => document.getElementById(id);
const DECIDED = { accept: "accepted", reject: "rejected", unsure: "unsure" };

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined && text !== null) element.textContent = text;
  return element;
}

function makeButton(className, text, title) {
  const button = make("button", className, text);
  button.type = "button";
  if (title) button.title = title;
  return button;
}

const INTEGERS = new Intl.NumberFormat("en"); // toLocaleString would make one each time
const count = (value) => INTEGERS.format(value);
const some = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
const number = (value, digits = 3) => (value === null || value === undefined ? "n/a" : value.toFixed(digits));

function figureText(row, figure) {
  const value = figureOf(row, figure.name);
  return value !== null && figure.share ? `${(100 * value).toFixed(1)} %` : number(value);
}

/** Why a row is what it is, in words. */
function explain(row, reasons) {
  if (!row.reason) return "";
  return reasons[row.reason] ? `${row.reason}: ${reasons[row.reason]}` : row.reason;
}

function makePicture(row, reasons) {
  const instead = row.reviewable ? "no preview" : explain(row, reasons) || "no picture";
  if (!row.preview) return make("span", "", instead);
  const image = make("img");
  image.decoding = "async";
  image.draggable = false;
  image.alt = "";
  image.addEventListener("error", () => image.replaceWith(make("span", "", instead)), { once: true });
  image.src = row.preview;
  return image;
}

/** The three buttons of a decision; `hint` names their keys. */
function makeDecide(group, row) {
  for (const decision of DECISIONS) {
    const title = decision === "accept" && row && row.status === "absent" ? "rightly absent" : "";
    const button = makeButton(decision, decision, title);
    button.dataset.decision = decision;
    group.append(button);
  }
  return group;
}

function markDecide(group, row) {
  for (const button of group.children) {
    button.setAttribute("aria-pressed", String(Boolean(row) && row.decision === button.dataset.decision));
    button.disabled = !row || !row.reviewable;
  }
}

function makeFigures(row) {
  const figures = make("div", row.masked ? "figures" : "figures single");
  for (const figure of FIGURES) {
    if (!row.masked && figureOf(row, figure.name) === null) continue;
    const minor = figure.minor ? "minor" : "", name = make("span", minor, figure.brief || figure.title);
    name.title = figure.about;
    const value = make("b", minor, figureText(row, figure));
    figures.append(...(figure.name === "confidence" ? [makeMeter(name, value, row.confidence)] : [name, value]));
  }
  return figures;
}

function makeMeter(name, value, share) {
  const meter = make("div", "meter"), track = make("div", "track"), fill = make("div");
  fill.style.width = `${100 * (share || 0)}%`;
  track.append(fill);
  meter.append(name, track, value);
  return meter;
}

/** The file's own name and, on a line of its own, the folders it lies in. */
function makeName(item) {
  const cut = item.lastIndexOf("/") + 1, name = make("div", "name"), folder = make("div", "folder");
  name.append(make("bdi", "", item.slice(cut) || item));
  folder.append(make("bdi", "", cut ? item.slice(0, cut) : "\u00a0"));
  name.title = folder.title = item;
  return [name, folder];
}

/** A card of the sheet; `markCard` shows its decision. */
function makeCard(row, reasons) {
  const card = make("article", "card panel");
  card.setAttribute("role", "listitem");
  const picture = makeButton("picture", null);
  picture.setAttribute("aria-label", `Enlarge ${row.item}, ${row.label}, ${row.status}`);
  picture.append(makePicture(row, reasons), make("span", "badge"));
  if (row.frames > 1) picture.append(make("span", "frames", `${count(row.frames)} frames`));
  const about = make("div", "about"), tags = make("div", "tags"), figures = makeFigures(row);
  tags.append(make("span", "", row.label), make("span", row.status, row.status));
  if (row.reason) {
    const why = make("span", "wide", row.masked ? row.reason : row.reviewable ? explain(row, reasons) : row.message);
    why.title = row.message || explain(row, reasons);
    figures.append(why);
  }
  about.append(...makeName(row.item), tags, figures);
  card.append(picture, about);
  card.append(row.reviewable ? makeDecide(make("div", "decide"), row) : make("div", "decide"));
  return card;
}

function markCard(card, row, isCurrent) {
  for (const decision of DECISIONS) card.classList.toggle(decision, row.decision === decision);
  card.classList.toggle("current", isCurrent);
  if (isCurrent) card.setAttribute("aria-current", "true");
  else card.removeAttribute("aria-current");
  card.querySelector(".badge").textContent = DECIDED[row.decision] || "";
  markDecide(card.querySelector(".decide"), row);
}

/** The tallest card there is. */
const SAMPLE = {
  item: "x", label: "x", status: "quarantined", reason: "low-confidence", message: "", preview: "",
  masked: true, reviewable: true, decision: "", frames: 1,
};
