// A list of cards of equal size, of which only those near the window exist.

const GAP = 14, CARD_WIDTH = 230, NARROW = 560, NARROW_CARD_WIDTH = 150, NARROW_GAP = 8;

class Grid {
  /** `makeCard(row)` makes an element; `sample` is the row whose card is the tallest. */
  constructor(element, makeCard, sample) {
    this.element = element;
    this.makeCard = makeCard;
    this.sample = sample;
    this.rows = [];
    this.cards = new Map(); // row → element
    this.range = "";
    this.columns = 1;
    this.pitch = 1;
    addEventListener("scroll", () => this.draw(), { passive: true });
    addEventListener("resize", () => this.draw(), { passive: true });
    new ResizeObserver(() => { if (this.element.clientWidth !== this.width) this.resize(); }).observe(element);
  }

  /** Show other rows; cards of rows that stay in view are kept. */
  show(rows) {
    this.rows = rows;
    this.range = "";
    if (!this.width) this.layout();
    this.element.style.height = `${this.height()}px`;
    this.draw();
  }

  height() {
    return Math.max(0, Math.ceil(this.rows.length / this.columns) * this.pitch - this.gap);
  }

  /** Lay out anew and keep what stood at the window's top there. */
  resize() {
    const top = -this.element.getBoundingClientRect().top;
    const first = this.rows[Math.max(0, Math.round(top / this.pitch)) * this.columns];
    this.layout();
    if (top > 0 && first) {
      const index = this.rows.indexOf(first);
      window.scrollBy(0, this.element.getBoundingClientRect().top + this.place(index).y);
    }
    this.draw();
  }

  layout() {
    const width = this.element.clientWidth, narrow = width < NARROW;
    this.width = width;
    this.gap = narrow ? NARROW_GAP : GAP;
    const least = narrow ? NARROW_CARD_WIDTH : CARD_WIDTH;
    this.columns = Math.max(narrow ? 2 : 1, Math.floor((width + this.gap) / (least + this.gap)));
    this.cell = (width - this.gap * (this.columns - 1)) / this.columns;
    this.element.classList.toggle("narrow", narrow);
    this.clear();
    const style = this.element.style;
    style.setProperty("--card-width", `${this.cell}px`);
    style.setProperty("--card-height", "auto");
    const probe = this.makeCard(this.sample);
    this.element.append(probe);
    const tall = Math.ceil(probe.offsetHeight);
    probe.remove();
    style.setProperty("--card-height", `${tall}px`);
    this.pitch = tall + this.gap;
    style.height = `${this.height()}px`;
  }

  clear() {
    this.cards.clear();
    this.element.replaceChildren();
    this.range = "";
  }

  place(index) {
    return { x: (index % this.columns) * (this.cell + this.gap), y: Math.floor(index / this.columns) * this.pitch };
  }

  /** Make the cards within one window's height of the window, drop all others. */
  draw() {
    const top = -this.element.getBoundingClientRect().top, reach = window.innerHeight;
    const line = (y) => Math.max(0, Math.floor(y / this.pitch));
    const start = Math.min(line(top - reach) * this.columns, this.rows.length);
    const end = Math.min(this.rows.length, (line(top + 2 * reach) + 1) * this.columns);
    if (`${start} ${end}` === this.range) return;
    this.range = `${start} ${end}`;
    const wanted = this.rows.slice(start, end), staying = new Set(wanted);
    for (const [row, card] of this.cards) {
      if (!staying.has(row)) {
        card.remove();
        this.cards.delete(row);
      }
    }
    let after = null; // from the end, so that the order in the document is that of the sheet
    for (let i = wanted.length - 1; i >= 0; i -= 1) after = this.put(wanted[i], start + i, after);
  }

  put(row, index, after) {
    let card = this.cards.get(row);
    if (!card) {
      card = this.makeCard(row);
      this.cards.set(row, card);
    }
    const { x, y } = this.place(index);
    card.style.transform = `translate(${x}px, ${y}px)`;
    card.setAttribute("aria-posinset", index + 1);
    card.setAttribute("aria-setsize", this.rows.length);
    if (card.nextSibling !== after || card.parentNode !== this.element) this.element.insertBefore(card, after);
    return card;
  }

  /** The row whose card holds `element`, or null. */
  rowOf(element) {
    const card = element.closest(".card");
    for (const [row, own] of this.cards) if (own === card) return row;
    return null;
  }

  /** Scroll as little as needed to have a row between `above` and `below` pixels of the window. */
  reveal(row, above, below) {
    const index = this.rows.indexOf(row);
    if (index < 0) return;
    const top = this.element.getBoundingClientRect().top + this.place(index).y;
    const free = window.innerHeight - above - below, height = this.pitch - this.gap;
    if (top < above || height > free) window.scrollBy({ top: top - above, behavior: "instant" });
    else if (top + height > above + free) window.scrollBy({ top: top + height - above - free, behavior: "instant" });
    this.draw();
  }
}
