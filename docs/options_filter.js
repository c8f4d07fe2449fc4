// A box on the page of options: only rows of which the first cell has all of its words are shown; if there is none, rows
// that have them anywhere. `#pruning.rate` in the address fills it.
document.addEventListener("DOMContentLoaded", () => {
  const title = document.getElementById("options");
  if (!title || title.tagName !== "H1") return;

  const box = document.createElement("input");
  box.type = "search";
  box.id = "option-filter";
  box.placeholder = "Filter: a key or words, such as pruning.rate or momentum";
  box.setAttribute("aria-label", "Filter the options");
  const nothing = document.createElement("p");
  nothing.textContent = "No option has these words.";
  nothing.hidden = true;
  title.after(box, nothing);

  // Each heading with all that stands below it, up to the next one.
  const sections = [...title.parentElement.querySelectorAll("h2")].map((heading) => {
    const below = [];
    for (let next = heading.nextElementSibling; next && next.tagName !== "H2"; next = next.nextElementSibling) below.push(next);
    const tables = below.flatMap((part) => (part.tagName === "TABLE" ? part : [...part.querySelectorAll("table")]));
    return { parts: [heading, ...below], tables };
  });

  const rowsOf = (table) => [...table.tBodies[0].rows];
  const rows = sections.flatMap(({ tables }) => tables.flatMap(rowsOf));
  const filter = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    const has = (element) => words.every((word) => element.textContent.toLowerCase().includes(word));
    const keys = rows.filter((row) => has(row.cells[0]));
    const shown = new Set(keys.length ? keys : rows.filter(has));
    for (const row of rows) row.hidden = !shown.has(row);
    const some = (table) => rowsOf(table).some((row) => shown.has(row));
    for (const { parts, tables } of sections) {
      for (const part of parts) part.hidden = !tables.some(some);
      for (const table of tables) table.hidden = !some(table);
    }
    nothing.hidden = shown.size > 0;
  };
  const fromAddress = () => {
    const key = decodeURIComponent(location.hash.slice(1));
    if (key && !document.getElementById(key)) {
      box.value = key;
      filter();
    }
  };
  box.addEventListener("input", filter);
  window.addEventListener("hashchange", fromAddress);
  fromAddress();
});
