// The review: a current row, decisions on it, keys and buttons.

const KEYS = {
  a: "accept", r: "reject", u: "unsure", z: "undo", j: "on", k: "back",
  ArrowRight: "on", ArrowLeft: "back", Enter: "enlarge", " ": "enlarge", "?": "keys", Escape: "leave",
};
const ONCE = ["accept", "reject", "unsure", "undo", "enlarge", "keys", "leave"]; // not again while held down

class Review {
  /**
   * `sheet` has `shown`, `matched`, `grid`, `refresh()` after decisions and `remember()` of the view.
   */
  constructor(decisions, sheet, reasons) {
    Object.assign(this, { decisions, sheet, reasons, active: false, current: null });
    makeDecide($("decide"), null);
    makeDecide($("large-decide"), null);
    for (const group of [$("decide"), $("large-decide")]) {
      for (const button of group.children) button.append(make("kbd", "", button.dataset.decision[0]));
    }
    document.addEventListener("keydown", (event) => this.onKey(event));
    document.addEventListener("click", (event) => this.onClick(event));
    $("file").addEventListener("change", () => this.importFile());
    $("large").addEventListener("click", (event) => { if (event.target === $("large")) $("large").close(); });
    $("large").addEventListener("close", () => this.afterLarge());
    addEventListener("storage", (event) => this.onStorage(event));
    addEventListener("beforeunload", (event) => { if (decisions.lost && !decisions.exported) event.preventDefault(); });
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const target = event.target, act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act || target.closest("input, select, textarea, [contenteditable]")) return;
    if (act === "enlarge" && target.closest("button, a, summary")) return; // they have a meaning of their own
    const open = $("large").open;
    if ($("keys").open || (open && act === "leave")) return; // a dialog closes itself
    if (act !== "keys" && !open && !this.active) return;
    event.preventDefault();
    if (event.repeat && ONCE.includes(act)) return;
    this.act(act === "enlarge" && open ? "shut" : act);
  }

  onClick(event) {
    const button = event.target.closest("button");
    if (!button) return;
    const row = $("cards").contains(button) ? this.sheet.grid.rowOf(button) : this.current;
    if (button.dataset.act) this.act(button.dataset.act);
    else if (button.dataset.decision && row) {
      this.current = row;
      this.decide(button.dataset.decision, true);
    } else if (button.classList.contains("picture") && row) {
      this.setCurrent(row);
      this.enlarge();
    }
  }

  act(name) {
    if (DECISIONS.includes(name)) this.decide(name);
    else if (name === "back" || name === "on") this.move(name === "on" ? 1 : -1);
    else if (name === "keys") $("keys").showModal();
    else if (name === "shut") $("large").close();
    else if (name === "leave") this.stop();
    else if (name === "import") $("file").click();
    else if (name === "export") this.exportFile();
    else this[name]();
  }

  start() {
    this.active = true;
    document.body.classList.add("reviewing");
    $("review").hidden = false;
    $("start").textContent = "End review";
    this.sheet.grid.layout();
    const shown = this.sheet.shown, first = shown.find((row) => row.reviewable && !row.decision);
    this.setCurrent(shown.includes(this.current) ? this.current : first || shown[0] || null);
    this.show();
    this.sheet.remember();
  }

  stop() {
    this.active = false;
    document.body.classList.remove("reviewing");
    $("review").hidden = true;
    $("start").textContent = "Review";
    this.sheet.grid.layout();
    this.show();
    if (this.current) this.reveal();
    this.sheet.remember();
  }

  /** Decide on the current row and move on; `toggles` takes back what was the same before. */
  decide(decision, toggles = false) {
    const row = this.current;
    if (!row) return;
    if (!row.reviewable) { this.say("There is no mask to review here."); return; }
    const same = row.decision === decision;
    if (same && toggles) {
      this.decisions.decide([[row, ""]]);
      this.say(`taken back: ${row.item}`);
      this.afterDecision(row);
      return;
    }
    const next = nextUndecided(this.sheet.shown, row);
    this.decisions.decide([[row, decision]]);
    this.say(`${decision === "accept" && row.status === "absent" ? "rightly absent" : DECIDED[decision]}: ${row.item}`);
    this.afterDecision(next || row);
    if (!next) this.say("All that is shown here is reviewed.");
  }

  afterDecision(row) {
    this.sheet.refresh();
    const shown = this.sheet.shown;
    this.setCurrent(shown.includes(row) ? row : shown[0] || null);
  }

  undo() {
    const rows = this.decisions.undo();
    this.say(rows.length ? `taken back: ${rows.length > 1 ? some(rows.length, "decision") : rows[0].item}` : "Nothing to undo.");
    if (rows.length) this.afterDecision(rows[0]);
  }

  move(step) {
    const shown = this.sheet.shown, index = shown.indexOf(this.current) + step;
    if (index >= 0 && index < shown.length) this.setCurrent(shown[index]);
  }

  setCurrent(row) {
    this.current = row;
    if (row) this.reveal();
    this.show();
    const shown = this.sheet.shown;
    preload(nextUndecided(shown, row));
    preload(shown[shown.indexOf(row) + 1]);
  }

  /** Bring the current card into view, and the focus to it where it was on a card or nowhere. */
  reveal() {
    const grid = this.sheet.grid, below = this.active ? $("review").offsetHeight : 0;
    grid.reveal(this.current, $("controls").offsetHeight + 12, below + 12);
    const focus = document.activeElement, card = grid.cards.get(this.current);
    if (card && !$("large").open && (focus === document.body || $("cards").contains(focus))) {
      card.querySelector(".picture").focus({ preventScroll: true });
    }
  }

  enlarge() {
    if (!this.current) return;
    if (!$("large").open) $("large").showModal();
    this.show();
  }

  afterLarge() {
    $("large").shown = null;
    $("large-stage").replaceChildren();
    const card = this.sheet.grid.cards.get(this.current);
    if (card) card.querySelector(".picture").focus({ preventScroll: true });
  }

  /** Bring everything that shows decisions up to date. */
  show() {
    for (const [row, card] of this.sheet.grid.cards) markCard(card, row, this.active && row === this.current);
    const { reviewable, reviewed, accept, reject, unsure } = countDecisions(this.sheet.matched);
    const text = `${count(reviewed)} of ${count(reviewable)} reviewed: ${count(accept)} accepted, ${count(reject)} rejected, ${count(unsure)} unsure`;
    $("progress").textContent = $("large-progress").textContent = text;
    $("track").style.width = `${reviewable ? (100 * reviewed) / reviewable : 0}%`;
    markDecide($("decide"), this.current);
    $("unsaved").hidden = !this.decisions.lost;
    $("unsaved").textContent = "This browser does not keep decisions here, or has no room left: export them before you close the page.";
    if (!$("large").open) return;
    const shown = this.sheet.shown, index = shown.indexOf(this.current);
    if (index < 0) $("large").close();
    else showLarge(this.current, this.reasons, `${count(index + 1)} of ${count(shown.length)}`);
  }

  say(text) {
    $("said").textContent = $("large-said").textContent = text;
  }

  onStorage(event) {
    if (event.key !== null && this.decisions.follow(event.key, event.newValue)) {
      this.sheet.refresh();
      this.show();
    }
  }

  exportFile() {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([this.decisions.toReview()], { type: "application/json" }));
    link.download = "review.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    this.decisions.exported = true;
    this.say(`${some(this.decisions.rows.filter((row) => row.decision).length, "decision")} exported as review.json.`);
  }

  async importFile() {
    const [file] = $("file").files;
    $("file").value = ""; // the same file again is a change, too
    if (!file) return;
    try {
      const question = "This review was saved from another run. Take over its decisions on items of the same name?";
      const result = this.decisions.merge(await file.text(), () => window.confirm(question));
      if (!result) return;
      const unknown = result.unknown ? `, ${count(result.unknown)} on items not listed here left out` : "";
      this.say(`${some(result.taken, "decision")} taken over from ${file.name}, ${count(result.same)} were the same${unknown}.`);
      this.sheet.refresh();
      this.show();
    } catch (error) {
      if (!(error instanceof ReviewError)) throw error;
      this.say(`${file.name} is no review: ${error.message}.`);
    }
  }
}
