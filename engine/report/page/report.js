// The sheet: filters, order, count and cards of what fits. Starts everything.

class Sheet {
  constructor(data) {
    this.data = data;
    this.rows = readRows(data);
    this.total = Object.values(data.counts).reduce((sum, size) => sum + size, 0);
    this.matched = this.shown = this.rows;
    this.choices = {
      labels: [...new Set(this.rows.map((row) => row.label))],
      reasons: [...new Set(this.rows.map((row) => row.reason).filter(Boolean))].sort(),
    };
    this.grid = new Grid($("cards"), (row) => this.makeCard(row), SAMPLE);
    this.review = new Review(new Decisions(data.run, this.rows, openStorage()), this, data.reasons);
    this.showCharts = makeCharts($("histograms"), this.rows, (low, high) => this.pickRange(low, high));
    this.fillControls();
    this.listen();
  }

  makeCard(row) {
    const card = makeCard(row, this.data.reasons);
    markCard(card, row, this.review.active && row === this.review.current);
    return card;
  }

  fillControls() {
    const { labels, reasons } = this.choices, sizes = new Map();
    for (const row of this.rows) sizes.set(row.reason, (sizes.get(row.reason) || 0) + 1);
    fillSelect("label", "All labels", labels.map((label) => [`=${label}`, label]));
    fillSelect("status", "All statuses", STATUSES.filter((s) => this.data.counts[s]).map((s) => [s, s]));
    fillSelect("reason", "All reasons", reasons.map((reason) => [reason, `${reason} (${count(sizes.get(reason))})`]));
    fillSelect("decision", "Any decision", [
      ["undecided", "undecided"], ["decided", "decided"], ...DECISIONS.map((name) => [name, DECIDED[name]]),
    ]);
    fillSelect("sort", null, SORTS.map(({ name, title }) => [name, `Sort by ${title}`]));
    $("label").hidden = labels.length < 2;
    $("reason").hidden = !reasons.length;
  }

  listen() {
    const change = () => this.setView(this.readControls());
    for (const id of ["label", "status", "reason", "decision", "sort"]) $(id).addEventListener("change", change);
    let waiting = 0;
    for (const id of ["search", "low", "high"]) {
      $(id).addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(change, 120); });
    }
    $("direction").addEventListener("click", () => this.setView({ ...this.view, down: !this.view.down }));
    $("clear").addEventListener("click", () => this.setView({ ...EVERYTHING, sort: this.view.sort, down: this.view.down }));
    $("start").addEventListener("click", () => (this.review.active ? this.review.stop() : this.review.start()));
    $("unfold").addEventListener("click", () => {
      const open = $("filters").classList.toggle("open");
      $("unfold").setAttribute("aria-expanded", String(open));
    });
    addEventListener("hashchange", () => this.follow());
  }

  /** Take the view from the hash, at the start and when somebody changes it. */
  follow() {
    const hash = location.hash;
    if (this.view && hash.slice(1) === viewToHash(this.view, this.review.active)) return;
    const reviewing = wantsReview(hash);
    this.setView(viewFromHash(hash, this.choices), true);
    if (isFiltered(this.view)) $("sheet-title").scrollIntoView({ behavior: "instant" });
    if (reviewing !== this.review.active) reviewing ? this.review.start() : this.review.stop();
    this.remember();
  }

  readControls() {
    return {
      ...this.view,
      text: $("search").value,
      label: $("label").value ? $("label").value.slice(1) : null,
      status: $("status").value, reason: $("reason").value, decision: $("decision").value, sort: $("sort").value,
      low: parseBound($("low").value, 0), high: parseBound($("high").value, 1),
    };
  }

  /** Fields that are being typed into are left alone. */
  writeControls() {
    const view = this.view, put = (id, value) => { if (document.activeElement !== $(id)) $(id).value = value; };
    put("search", view.text);
    put("low", view.low > 0 ? String(view.low) : "");
    put("high", view.high < 1 ? String(view.high) : "");
    $("label").value = view.label === null ? "" : `=${view.label}`;
    for (const id of ["status", "reason", "decision", "sort"]) $(id).value = view[id];
    const [up, down] = view.sort === "item" ? ["A to Z", "Z to A"] : ["lowest first", "highest first"];
    $("direction").textContent = view.down ? down : up;
    $("clear").hidden = !isFiltered(view);
  }

  setView(view, initial = false) {
    this.view = view;
    this.matched = matchRows(this.rows, view);
    this.writeControls();
    this.refresh(true);
    const { review } = this;
    if (review.current && !this.shown.includes(review.current)) review.current = null;
    if (review.active && !review.current) review.current = this.shown.find((row) => row.reviewable && !row.decision) || this.shown[0] || null;
    review.show();
    if (!initial) {
      this.toTop();
      this.remember();
    }
  }

  /** After decisions: what fits may have changed, the order has not. */
  refresh(always = false) {
    const wanted = this.view.decision;
    if (!wanted && !always) return;
    this.shown = wanted ? this.matched.filter((row) => fitsDecision(row, wanted)) : this.matched;
    this.grid.show(this.shown);
    this.showCharts(this.shown);
    let text = `${count(this.shown.length)} of ${count(this.total)} outcomes`;
    if (this.rows.length < this.total) text += ` (${count(this.rows.length)} are listed here, manifest.parquet holds all)`;
    $("count").textContent = text;
    $("nothing").hidden = this.shown.length > 0;
  }

  /** Where the sheet's start has been scrolled past, go back to it. */
  toTop() {
    const gap = $("cards").getBoundingClientRect().top - $("controls").offsetHeight - GAP;
    if (gap < 0) window.scrollBy({ top: gap, behavior: "instant" });
    this.grid.draw();
  }

  remember() {
    const hash = viewToHash(this.view, this.review.active);
    if (location.hash.slice(1) === hash) return;
    try {
      history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
    } catch { // browsers limit how often; the next change catches up
    }
  }

  /** Show a bar of the histogram alone, or all again. */
  pickRange(low, high) {
    const same = this.view.low === low && this.view.high === high;
    this.setView({ ...this.view, low: same ? 0 : low, high: same ? 1 : high });
  }
}

function fillSelect(id, all, options) {
  if (all) $(id).append(new Option(all, ""));
  $(id).append(...options.map(([value, text]) => new Option(text, value)));
}

function startReport(data) {
  $("main").hidden = false;
  showRun(data);
  showEvaluation(data.evaluation);
  const sheet = new Sheet(data);
  showQuarantine(data, sheet.rows);
  sheet.follow(); // last, because it scrolls
}

if (window.medclipsam) startReport(window.medclipsam);
else $("trouble").hidden = false;
