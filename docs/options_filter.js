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
  title.after(box);

  const sections = [...title.parentElement.querySelectorAll("h2")].map((heading) => ({ heading, tables: [] }));
  for (const table of title.parentElement.querySelectorAll("table")) {
    const before = sections.filter(({ heading }) => heading.compareDocumentPosition(table) & 4); // 4: follows
    before[before.length - 1].tables.push(table);
  }

  const rows = sections.flatMap(({ tables }) => tables.flatMap((table) => [...table.tBodies[0].rows]));
  const filter = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    const has = (element) => words.every((word) => element.textContent.toLowerCase().includes(word));
    const keys = rows.filter((row) => has(row.cells[0]));
    const shown = new Set(keys.length ? keys : rows.filter(has));
    for (const row of rows) row.hidden = !shown.has(row);
    for (const { heading, tables } of sections) {
      for (const table of tables) table.hidden = [...table.tBodies[0].rows].every((row) => row.hidden);
      heading.hidden = tables.every((table) => table.hidden);
    }
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
