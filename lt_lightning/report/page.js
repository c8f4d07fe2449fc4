"use strict";
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const element = (tag, properties) => Object.assign(document.createElement(tag), properties);

// Parts: one is shown at a time, and the address says which.
const parts = all("main > section").map(part => part.id);
function show() {
  const name = parts.includes(location.hash.slice(1)) ? location.hash.slice(1) : parts[0];
  for (const part of all("main > section")) part.hidden = part.id !== name;
  for (const link of all("nav a")) {
    if (link.hash === "#" + name) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
}
addEventListener("hashchange", () => { show(); scrollTo(0, 0); });
show();

// Blocks of which one is shown at a time.
for (const select of all("select[data-chooses]")) {
  const choose = () => { for (const part of all("." + select.dataset.chooses)) part.hidden = part.dataset.choice !== select.value; };
  select.addEventListener("change", choose);
  choose();
}

// Legends: an entry leaves its curves out and shows them again.
function press(key) {
  const chart = key.closest(".chart"), on = key.getAttribute("aria-pressed") !== "true";
  for (const each of all(".key", chart)) if (each.dataset.key === key.dataset.key) each.setAttribute("aria-pressed", on);
  const off = new Set(all('.key[aria-pressed="false"]', chart).map(each => each.dataset.key));
  for (const curve of all("[data-keys]", chart)) {
    curve.style.display = curve.dataset.keys.split("\n").some(name => off.has(name)) ? "none" : "";
  }
}
for (const key of all(".chart .key")) {
  key.addEventListener("click", () => press(key));
  key.addEventListener("keydown", event => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); press(key); }
  });
}

// What is said of a point.
const said = document.getElementById("said");
for (const kind of ["pointerover", "click"]) {
  document.addEventListener(kind, event => {
    const mark = event.target.closest?.("[data-text]");
    said.hidden = !mark;
    if (!mark) return;
    said.textContent = mark.dataset.text;
    const place = mark.getBoundingClientRect();
    said.style.left = Math.max(4, Math.min(place.right + 6, innerWidth - said.offsetWidth - 4)) + "px";
    said.style.top = Math.max(4, place.top - said.offsetHeight - 4) + "px";
  });
}

// Figures as PNG, as they are shown.
for (const chart of all(".chart")) {
  const button = element("button", { type: "button", textContent: "Save as PNG" });
  chart.querySelector(".save").append(button);
  button.addEventListener("click", () => {
    const drawn = all("svg", chart).find(each => each.clientWidth && !each.parentElement.closest("svg"));
    const style = getComputedStyle(document.documentElement);
    const text = new XMLSerializer().serializeToString(drawn).replace(/var\((--\w+)\)/g, (_, name) => style.getPropertyValue(name));
    const image = new Image();
    image.addEventListener("load", () => {
      const canvas = element("canvas", { width: 3 * image.width, height: 3 * image.height });
      const context = canvas.getContext("2d");
      context.fillStyle = style.getPropertyValue("--ground");
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.drawImage(image, 0, 0, canvas.width, canvas.height);
      element("a", { href: canvas.toDataURL(), download: chart.dataset.name + ".png" }).click();
    });
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
  });
}

// Tables: sorted by a click on a heading, filtered by text, copied with tabs between the cells.
const texts = row => [...row.cells].map(cell => cell.textContent);
function value(text) {
  const number = text.replace(/[,%~]/g, "").trim();
  return number !== "" && isFinite(number) ? Number(number) : text;
}
function compare(one, other) {
  if (one === "" || other === "") return (one === "") - (other === "");
  if (typeof one === typeof other) return typeof one === "number" ? one - other : one.localeCompare(other);
  return typeof one === "number" ? -1 : 1;
}
for (const data of all("table.data")) {
  const body = data.tBodies[0], heads = [...data.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = element("button", { type: "button", textContent: head.textContent });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const keyed = [...body.rows].map(row => [value(row.cells[column].textContent), row]);
      keyed.sort(([one], [other]) => one === "" || other === "" ? compare(one, other) : (falling ? -1 : 1) * compare(one, other));
      body.append(...keyed.map(([, row]) => row));
    });
  });
  const tools = element("p", { className: "tools" });
  const filter = element("input", { type: "search", placeholder: "filter rows", ariaLabel: "filter rows" });
  const copy = element("button", { type: "button", textContent: "Copy table" });
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) {
      const text = texts(row).join(" ").toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
  });
  copy.addEventListener("click", async () => {
    const rows = [data.tHead.rows[0], ...[...body.rows].filter(row => !row.hidden), ...(data.tFoot?.rows ?? [])];
    const area = element("textarea", { value: rows.map(row => texts(row).join("\t")).join("\n") });
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy"); // which works in a file that was opened from a disk, too
    area.remove();
    copy.textContent = copied ? "Copied" : "Copying is not allowed here";
    setTimeout(() => { copy.textContent = "Copy table"; }, 1500);
  });
  tools.append(...(body.rows.length > 5 ? [filter] : []), copy);
  data.parentElement.before(tools);
}

// Printing gives everything, what is folded too.
addEventListener("beforeprint", () => { for (const details of all("details")) details.open = true; });
