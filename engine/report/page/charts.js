// Histograms of what is shown.

const BINS = 20;

const CHARTS = [
  { name: "confidence", title: "Confidence", top: () => 1, pick: true },
  { name: "agreement", title: "Agreement", top: () => 1 },
  { name: "area_share", title: "Area, share of the picture", top: niceTop, share: true },
];

/** The end of an axis that holds the largest value: one digit times a power of ten, at most 1. */
function niceTop(values) {
  const most = values.reduce((a, b) => Math.max(a, b), 0);
  if (!most) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  const step = [1, 2, 3, 4, 5, 6, 8, 10].find((factor) => factor * power >= most * 0.999999) * power;
  return Math.min(1, Number(step.toPrecision(1)));
}

function valuesOf(rows, name) {
  return rows.map((row) => figureOf(row, name)).filter((value) => value !== null);
}

/** Make the charts; `pick(low, high)` is called for a bar of confidence. Returns `show(rows)`.
    A figure that no mask of this run has, such as a task model's agreement, has no chart. */
function makeCharts(parent, rows, pick) {
  const masks = valuesOf(rows, "confidence").length;
  const known = CHARTS.filter((chart) => !masks || valuesOf(rows, chart.name).length);
  const charts = known.map((chart) => {
    const section = make("section", "histogram"), bars = make("div", "bars"), axis = make("div", "axis");
    const top = chart.top(valuesOf(rows, chart.name));
    section.append(make("h3", "", chart.title), bars, axis);
    parent.append(section);
    if (!chart.pick) bars.setAttribute("role", "img");
    return { ...chart, top, bars, axis };
  });
  return (shown) => charts.forEach((chart) => showChart(chart, shown, pick));
}

function showChart(chart, shown, pick) {
  const values = valuesOf(shown, chart.name).sort((a, b) => a - b);
  const sizes = binValues(values, BINS, chart.top), most = Math.max(1, ...sizes);
  const form = (value) => (chart.share ? `${+(100 * value).toPrecision(3)} %` : String(+value.toFixed(2)));
  const bars = sizes.map((size, bin) => {
    const ends = [binEnd(bin, BINS, chart.top), binEnd(bin + 1, BINS, chart.top)];
    const text = `${form(ends[0])} to ${form(ends[1])}: ${count(size)}`;
    return makeBar(size / most, text, chart.pick && size ? () => pick(...ends) : null);
  });
  chart.bars.replaceChildren(...bars);
  const middle = values[values.length >> 1];
  const median = values.length ? `median ${form(middle)} of ${count(values.length)}` : "no masks";
  chart.bars.setAttribute("aria-label", `${chart.title}: ${median}`);
  chart.axis.replaceChildren(make("span", "", form(0)), make("span", "", median), make("span", "", form(chart.top)));
}

/** A bar; one that can be picked is a button, which the fields of the range stand in for on a keyboard. */
function makeBar(height, text, onPick) {
  const bar = onPick ? makeButton("bar", null, `${text} (show these)`) : make("div", "bar");
  bar.title = bar.title || text;
  if (onPick) {
    bar.tabIndex = -1;
    bar.setAttribute("aria-label", text);
    bar.addEventListener("click", onPick);
  }
  const fill = make("div");
  fill.style.height = height ? `max(2px, ${100 * height}%)` : "0";
  bar.append(fill);
  return bar;
}
