// The table of what was quarantined: reasons with their counts, a page of rows at a time.

const LINES = 100;

function showQuarantine(data, rows) {
  const lost = rows.filter((row) => row.status === "quarantined").sort((a, b) => a.rank - b.rank);
  const total = data.counts.quarantined || 0;
  if (!total) return;
  $("quarantine").hidden = false;
  const state = { reason: "", page: 0 };
  const draw = () => drawQuarantine(lost, state, total);
  const why = data.why.filter(([status]) => status === "quarantined");
  for (const [, reason, size] of why) {
    const button = makeButton("reason", null, data.reasons[reason]);
    button.setAttribute("aria-pressed", "false");
    button.append(make("b", "", count(size)), make("span", "", reason), make("small", "", data.reasons[reason] || ""));
    button.addEventListener("click", () => {
      Object.assign(state, { reason: state.reason === reason ? "" : reason, page: 0 });
      for (const other of $("quarantine-reasons").children) {
        other.setAttribute("aria-pressed", String(other === button && state.reason === reason));
      }
      $("quarantine-list").open = true;
      draw();
    });
    $("quarantine-reasons").append(button);
  }
  $("quarantine-back").addEventListener("click", () => { state.page -= 1; draw(); });
  $("quarantine-on").addEventListener("click", () => { state.page += 1; draw(); });
  $("quarantine-list").open = total <= 5;
  draw();
}

function drawQuarantine(lost, state, total) {
  const fitting = state.reason ? lost.filter((row) => row.reason === state.reason) : lost;
  const start = state.page * LINES, end = Math.min(fitting.length, start + LINES);
  $("quarantine-rows").replaceChildren(...fitting.slice(start, end).map(makeLine));
  $("quarantine-pages").hidden = fitting.length <= LINES;
  $("quarantine-back").disabled = start === 0;
  $("quarantine-on").disabled = end === fitting.length;
  $("quarantine-place").textContent = `${count(start + 1)} to ${count(end)} of ${count(fitting.length)}`;
  const listed = lost.length < total ? `; ${count(lost.length)} of ${count(total)} are listed, manifest.parquet holds all` : "";
  $("quarantine-summary").textContent = `List${state.reason ? ` of ${state.reason}` : ""}, ${some(fitting.length, "outcome")}${listed}`;
}

function makeLine(row) {
  const line = make("tr"), item = make("td");
  if (row.mask) {
    const link = make("a", "", row.item);
    Object.assign(link, { href: row.mask, target: "_blank", rel: "noopener noreferrer", title: "The mask that was kept apart" });
    item.append(link);
  } else item.append(make("bdi", "", row.item));
  line.append(item);
  for (const name of ["label", "stage", "reason", "message"]) line.append(make("td", name === "reason" || name === "stage" ? "code" : "", row[name]));
  return line;
}
