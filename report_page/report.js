// Shows the photos of a run by doubt, and keeps what people say of them. The data arrive by calls of sam2vit.index and
// sam2vit.rows from scripts: a page that is opened from a file may not fetch. Names are text everywhere, never HTML.
"use strict";

const sam2vit = (() => {
  const MARGIN_ROWS = 2; // of cells above and below what is seen
  const MOST_DOTS = 3000;
  const SVG = "http://www.w3.org/2000/svg";
  const byId = (id) => document.getElementById(id);

  let report = null;
  let columns = null;
  let chunks = []; // of rows; undefined before they are asked for, null while they are loaded, false if that failed
  let waiting = new Map(); // chunk -> what is to be done when it has come
  let view = []; // the numbers of the photos that the filters let pass, in order
  let shuffled = null;
  let position = 0; // in the view, of the selected photo
  let focusWanted = false;
  let texts = null; // of all rows in lower case, once the text filter has asked for them
  let rebuilt = false; // since this page was opened: other photos are in the chunks than its index says
  let verdicts = new Map(); // id -> {verdict, item, label, mask, name, source}; what it is about, not what came later
  let unstored = new Set(); // ids of the verdicts that the storage had no room for
  let history = [];
  let numberById = new Map();
  const cells = new Map(); // number -> element

  function element(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in made && typeof value !== "string") made[name] = value;
      else if (name === "text") made.textContent = value;
      else made.setAttribute(name === "className" ? "class" : name, value);
    }
    made.append(...children);
    return made;
  }

  function drawn(tag, attributes = {}, text = null) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== null) made.textContent = text;
    return made;
  }

  // A name, which may run from right to left, or turn what follows it.
  const bdi = (text) => element("bdi", { text });

  const write = (node, text) => {
    if (node.textContent !== text) node.textContent = text; // else a screen reader would say it again
  };

  const shellWord = (text) => (/^[\w./:@%+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  const percent = (value) => `${(100 * value).toFixed(1)}%`;
  const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
  const urlOf = (folder, path) => folder + path.split("/").map(encodeURIComponent).join("/");
  const thumbnail = (number, ending) => {
    const id = columns.id[number];
    return `thumbnails/${id.slice(0, 2)}/${id}.${ending}`;
  };
  const itemOf = (number) => report.items[columns.item[number]];
  const overruled = (number) => columns.human[number] === 2; // then probability and lead are another item's
  const maskOf = (number) => `${columns.mask_score[number]} ${columns.mask_area[number]}`;
  const hasFlag = (number, flag) => Boolean((columns.flags[number] >>> report.flags.indexOf(flag)) & 1);
  const flagsOf = (number) => report.flags.filter((flag) => hasFlag(number, flag));

  // Rows

  function rowOf(number) {
    const chunk = chunks[Math.floor(number / report.chunk)];
    return chunk ? chunk[number % report.chunk] : null;
  }

  function withRow(number, then) {
    const row = rowOf(number);
    if (row) then(row);
    else load(Math.floor(number / report.chunk), () => then(rowOf(number)));
  }

  const fileOf = (chunk) => `data/rows-${String(chunk).padStart(4, "0")}.js`;

  function load(chunk, then = () => {}) {
    if (chunks[chunk]) {
      then();
      return;
    }
    if (rebuilt) return;
    waiting.set(chunk, [...(waiting.get(chunk) || []), then]);
    if (chunks[chunk] === null) return;
    chunks[chunk] = null;
    // The build is in the address, so that a server's page gets none of an earlier build from the browser's cache.
    const script = element("script", { src: `${fileOf(chunk)}?${report.build}` });
    script.onload = script.onerror = () => {
      if (chunks[chunk] !== null) return;
      chunks[chunk] = false;
      waiting.delete(chunk);
      showCount();
      showWarnings();
    };
    document.head.append(script);
  }

  function rows(build, chunk, list) {
    if (build !== report.build) {
      rebuilt = true;
      return;
    }
    chunks[chunk] = list;
    const then = waiting.get(chunk) || [];
    waiting.delete(chunk);
    for (const each of then) each();
  }

  function loadAll(then) {
    if (rebuilt) return;
    const count = Math.ceil(columns.item.length / report.chunk);
    const next = (chunk) => {
      if (chunk === count) {
        texts = columns.item.map((_, number) => `${rowOf(number).name}\n${rowOf(number).source}`.toLowerCase());
        then();
        return;
      }
      byId("shown").textContent = `reading names: ${Math.round((100 * chunk) / count)}%`;
      load(chunk, () => next(chunk + 1));
    };
    next(0);
  }

  // Verdicts

  // The browser's, which the tabs of a report share; where that is blocked, an object that goes with the page.
  const stored = openStorage();
  const storage = stored || {};
  const storageKey = (id) => `sam2vit:${report.key}:${id}`;
  const storedIds = () => {
    const prefix = storageKey("");
    return Object.keys(storage).filter((key) => key.startsWith(prefix)).map((key) => key.slice(prefix.length));
  };

  function openStorage() {
    try {
      return window.localStorage;
    } catch { // SecurityError
      return null;
    }
  }

  function readVerdicts() {
    verdicts = new Map([...verdicts].filter(([id]) => unstored.has(id)));
    for (const id of storedIds()) if (!unstored.has(id)) take(id, storage[storageKey(id)]);
  }

  // A verdict on another label or cut-out than the photo has now is outdated, and as if it were not there.
  function take(id, text) {
    let said = null;
    try {
      said = JSON.parse(text);
    } catch { // whoever has written it, it is no verdict
    }
    const number = numberById.get(id);
    const isOf = (number) => said?.label === itemOf(number) && (said.mask ?? maskOf(number)) === maskOf(number);
    if (number !== undefined && isOf(number)) verdicts.set(id, said);
    else verdicts.delete(id);
  }

  // What another tab has said.
  function onStorage(event) {
    const id = event.key?.slice(storageKey("").length);
    if (event.key === null) { // all is gone
      history = [];
      readVerdicts();
      redraw();
    } else if (event.key === storageKey(id) && numberById.has(id)) {
      unstored.delete(id);
      history = history.filter(([each]) => each !== id);
      take(id, event.newValue);
      refresh(numberById.get(id));
      showProgress();
    }
  }

  function keep(id, said) {
    unstored.delete(id);
    if (said) {
      verdicts.set(id, said);
      try {
        storage[storageKey(id)] = JSON.stringify(said);
      } catch { // QuotaExceededError
        unstored.add(id);
      }
    } else {
      verdicts.delete(id);
      delete storage[storageKey(id)];
    }
  }

  function say(verdict, item = "") {
    const number = view[position];
    if (number === undefined || rebuilt) return;
    withRow(number, (row) => {
      const id = columns.id[number];
      const label = itemOf(number);
      history.push([id, verdicts.get(id)]);
      const about = { label, mask: maskOf(number), name: row.name, source: row.source };
      keep(id, { verdict, item: verdict === "right" ? label : item, ...about });
      const filtered = byId("reviewed").value !== "";
      if (filtered) {
        filter();
      } else {
        refresh(number);
        showProgress();
      }
      move(filtered ? 0 : 1);
    });
  }

  function undo() {
    const last = rebuilt ? undefined : history.pop();
    if (!last) return;
    const [id, before] = last;
    keep(id, before);
    filter();
    const place = view.indexOf(numberById.get(id));
    if (place >= 0) select(place);
  }

  function describeVerdict(said) {
    if (!said) return null;
    if (said.verdict === "right") return ["right", "✓ right"];
    if (said.verdict === "bad mask") return ["mask", "⚠ bad mask"];
    return ["wrong", said.item ? `→ ${said.item}` : "✗ wrong"];
  }

  // Of a text that a spreadsheet could take for a formula; see csv_utilities.py.
  const toCell = (text) => (/^[=+\-@\t\r\n']/.test(text) ? `'${text}` : text);
  const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);

  function toCsv() {
    const lines = [...verdicts.values()]
      .sort((one, other) => (one.name < other.name ? -1 : 1))
      .map((said) => [said.name, said.item, said.verdict, said.source]);
    return [["file_name", "item", "verdict", "source"], ...lines]
      .map((line) => `${line.map((text) => quoted(toCell(text))).join(",")}\r\n`)
      .join("");
  }

  function save() {
    readVerdicts();
    redraw();
    const blob = new Blob(["\ufeff", toCsv()], { type: "text/csv;charset=utf-8" });
    const link = element("a", { href: URL.createObjectURL(blob), download: "corrections.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function clear() {
    if (!verdicts.size || !window.confirm(`Forget ${plural(verdicts.size, "verdict")}?`)) return;
    for (const id of [...verdicts.keys(), ...storedIds()]) keep(id, undefined);
    history = [];
    filter();
  }

  function showProgress() {
    const count = verdicts.size;
    byId("progress").max = columns.item.length || 1;
    byId("progress").value = count;
    byId("reviewed-count").textContent = `${count.toLocaleString("en")} reviewed`;
    byId("save").disabled = byId("clear").disabled = count === 0;
    showSampleNote();
    showWarnings();
  }

  // The sample is the beginning of the random order, up to the first photo without a verdict.
  function showSampleNote() {
    byId("sample-note").hidden = byId("order").value !== "random";
    if (byId("sample-note").hidden) return;
    const order = ordered();
    const gap = order.findIndex((number) => !verdicts.has(columns.id[number]));
    const outside = verdicts.size - (gap < 0 ? order.length : gap);
    write(byId("sample-note"),
      view.length < order.length
        ? "A filter is on: what is reviewed now is no random sample of the whole output."
        : outside
          ? `${plural(outside, "verdict")} ${outside === 1 ? "lies" : "lie"} outside the random sample, which ends before ` +
            "the first photo of this order that has none, or was skipped. The file that you save would not tell how " +
            "precise the whole output is."
          : "In this order your verdicts are a random sample, if you skip none: only such labels tell how precise the " +
            "whole output is. Save them, and give the file to --evaluate.");
  }

  function showWarnings() {
    const failed = chunks.indexOf(false);
    const lines = [
      rebuilt
        ? "The report was rebuilt after this page was opened: reload it. Until then it takes no verdicts."
        : failed >= 0 && `${fileOf(failed)} can't be read: reload this page, or build the report again.`,
      !stored && "This browser keeps nothing for this page: verdicts are lost on reload unless you save them.",
      unstored.size &&
        `This browser has no more room for ${plural(unstored.size, "verdict")}: save the corrections now, then clear.`,
    ];
    const text = lines.filter(Boolean).join("\n");
    for (const each of document.querySelectorAll(".warning")) write(each, text);
  }

  // Filters

  const FIELDS = ["item", "flag", "low", "high", "reviewed", "text", "order", "ground"];
  const DEFAULTS = { order: "doubt", ground: "board" };

  function readHash() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const name of FIELDS) {
      byId(name).value = given.get(name) ?? DEFAULTS[name] ?? "";
      if (byId(name).selectedIndex < 0) byId(name).value = DEFAULTS[name] ?? ""; // an item that is there no longer
    }
  }

  function writeHash() {
    const set = FIELDS.filter((name) => byId(name).value && byId(name).value !== DEFAULTS[name]);
    const parameters = new URLSearchParams(set.map((name) => [name, byId(name).value]));
    window.history.replaceState(null, "", set.length ? `#${parameters}` : location.pathname + location.search);
  }

  // By the hash of the source: as good as drawn, and the same in every report. Where the page has only the doubtful of
  // all photos, a sample of all is among them: those whose hashes come first.
  function shuffle(numbers) {
    const ids = columns.id;
    return numbers
      .filter((number) => ids[number] <= report.sample_ends)
      .sort((one, other) => (ids[one] < ids[other] ? -1 : 1));
  }

  function ordered() {
    const order = Array.from({ length: columns.item.length }, (_, number) => number);
    if (byId("order").value === "random") return (shuffled ||= shuffle(order));
    return byId("order").value === "sure" ? order.reverse() : order;
  }

  function filter() {
    const text = byId("text").value.trim().toLowerCase();
    if (text && !texts) {
      loadAll(filter);
      return;
    }
    const item = byId("item").value === "" ? -1 : report.items.indexOf(byId("item").value);
    const flag = byId("flag").value === "" ? 0 : 1 << report.flags.indexOf(byId("flag").value);
    const low = byId("low").value === "" ? 0 : Number(byId("low").value);
    const high = byId("high").value === "" ? 1 : Number(byId("high").value);
    const reviewed = byId("reviewed").value;
    view = ordered().filter(
      (number) =>
        (item < 0 || columns.item[number] === item) &&
        (!flag || columns.flags[number] & flag) &&
        columns.probability[number] >= low &&
        columns.probability[number] <= high &&
        (!reviewed || verdicts.has(columns.id[number]) === (reviewed === "yes")) &&
        (!text || texts[number].includes(text)),
    );
    position = Math.max(0, Math.min(position, view.length - 1));
    showCount();
    byId("grid").className = byId("details").className = byId("ground").value;
    writeHash();
    redraw();
  }

  function showCount() {
    byId("shown").textContent = `${view.length.toLocaleString("en")} of ${plural(columns.item.length, "photo")}`;
  }

  // The grid: only the cells that are seen, and a few around them, exist

  function measure() {
    const style = getComputedStyle(document.documentElement);
    const cell = parseInt(style.getPropertyValue("--cell"), 10);
    const width = Math.max(cell, byId("grid").clientWidth);
    const perRow = Math.max(1, Math.floor(width / (cell + 4)));
    return { perRow, wide: Math.floor(width / perRow), high: cell + 38 };
  }

  function redraw() {
    for (const cell of cells.values()) cell.remove();
    cells.clear();
    byId("viewport").querySelector(".none")?.remove();
    const none = columns.item.length ? "No photo passes these filters." : "This output has no photos.";
    if (!view.length) byId("viewport").append(element("p", { className: "none", text: none }));
    draw();
    showProgress();
    if (byId("details").open) showDetails();
  }

  function draw() {
    const { perRow, wide, high } = measure();
    const viewport = byId("viewport");
    byId("grid").style.height = `${Math.ceil(view.length / perRow) * high}px`;
    const first = Math.max(0, Math.floor(viewport.scrollTop / high) - MARGIN_ROWS) * perRow;
    const last = (Math.ceil((viewport.scrollTop + viewport.clientHeight) / high) + MARGIN_ROWS) * perRow;
    const wanted = new Set();
    for (let place = first; place < Math.min(last, view.length); place += 1) {
      const number = view[place];
      wanted.add(number);
      const cell = cells.get(number) || makeCell(number);
      cell.style.transform = `translate(${(place % perRow) * wide}px, ${Math.floor(place / perRow) * high}px)`;
      cell.dataset.place = place;
      cell.setAttribute("aria-posinset", place + 1);
      cell.setAttribute("aria-setsize", view.length);
      cell.setAttribute("aria-selected", String(place === position));
      cell.tabIndex = place === position ? 0 : -1;
    }
    for (const [number, cell] of cells) {
      if (wanted.has(number)) continue;
      cell.remove();
      cells.delete(number);
    }
    const selected = cells.get(view[position]);
    if (focusWanted && selected && !document.querySelector("dialog[open]")) {
      selected.focus({ preventScroll: true });
      focusWanted = false;
    }
  }

  function makeCell(number) {
    const cut = element("img", { className: "cut", src: thumbnail(number, "webp"), alt: "", loading: "lazy", decoding: "async" });
    const photo = element("img", { className: "photo", alt: "", decoding: "async" });
    const cell = element("div", { className: "cell", role: "option", id: `photo-${number}` },
      element("div", { className: "picture" }, cut, photo),
      element("div", { className: "caption" },
        element("span", { className: "label" }, bdi(itemOf(number))),
        element("span", { className: "sure", text: overruled(number) ? "by a human" : percent(columns.probability[number]) })),
      element("div", { className: "note" }),
    );
    const show = () => {
      if (!photo.src) photo.src = thumbnail(number, "jpg");
    };
    cell.addEventListener("pointerenter", show);
    cell.addEventListener("focus", show);
    cells.set(number, cell);
    byId("grid").append(cell);
    refresh(number);
    if (!rowOf(number)) load(Math.floor(number / report.chunk), () => refresh(number));
    return cell;
  }

  function refresh(number) {
    const cell = cells.get(number);
    if (!cell) return;
    const row = rowOf(number);
    const name = row ? row.source : "";
    const flags = flagsOf(number);
    const note = cell.querySelector(".note");
    note.replaceChildren(flags.length ? flags.join(", ") : bdi(name));
    note.classList.toggle("flagged", flags.length > 0);
    const said = describeVerdict(verdicts.get(columns.id[number]));
    cell.querySelector(".verdict")?.remove();
    if (said) cell.append(element("span", { className: `verdict ${said[0]}`, text: said[1] }));
    cell.querySelector(".cut").alt = `Cut-out of ${name || "a photo"}, labelled ${itemOf(number)}`;
    cell.querySelector(".photo").alt = `The photo ${name}`;
    cell.title = name;
    if (byId("details").open && number === view[position]) showDetails();
  }

  function select(place) {
    if (!view.length) return;
    position = Math.max(0, Math.min(place, view.length - 1));
    const { perRow, high } = measure();
    const viewport = byId("viewport");
    const top = Math.floor(position / perRow) * high;
    if (top < viewport.scrollTop) viewport.scrollTop = top;
    if (top + high > viewport.scrollTop + viewport.clientHeight) viewport.scrollTop = top + high - viewport.clientHeight;
    focusWanted = true;
    draw();
    if (!document.querySelector("dialog[open]")) viewport.scrollIntoView({ block: "nearest" });
    if (byId("details").open) showDetails();
  }

  const move = (steps) => select(position + steps);

  // Details of one photo

  function showDetails() {
    const number = view[position];
    if (number === undefined) {
      byId("details").close();
      return;
    }
    withRow(number, (row) => {
      if (number !== view[position]) return;
      byId("details-title").replaceChildren(bdi(itemOf(number)), ": ", bdi(row.source));
      const said = describeVerdict(verdicts.get(columns.id[number]));
      byId("details-verdict").textContent = said ? said[1] : "";
      byId("details-verdict").className = said ? said[0] : "";
      showOriginal(number, row);
      const folder = report.folders[hasFlag(number, "review") ? "review" : "output"];
      showPicture(byId("cut-out"), urlOf(folder, row.name), thumbnail(number, "webp"));
      byId("cut-out").alt = `Cut-out of ${row.source}, labelled ${itemOf(number)}`;
      showNumbers(number, row);
    });
  }

  function showPicture(image, url, instead) {
    image.onerror = () => {
      image.onerror = null;
      image.src = instead;
    };
    image.src = url;
  }

  function showOriginal(number, row) {
    const image = element("img", { alt: `The photo ${row.source}` });
    const frame = element("div", { className: "frame" }, image);
    showPicture(image, urlOf(report.folders.dataset, row.source), thumbnail(number, "jpg"));
    if (row.contour) {
      const outline = drawn("svg", { viewBox: "0 0 1000 1000", preserveAspectRatio: "none", "aria-hidden": "true" });
      outline.append(drawn("path", { d: row.contour, class: "under" }), drawn("path", { d: row.contour }));
      outline.style.display = outlined() ? "" : "none";
      frame.append(outline);
    }
    byId("original").replaceChildren(frame);
  }

  const outlineButton = () => document.querySelector('[data-key="m"]');
  const outlined = () => outlineButton().getAttribute("aria-pressed") === "true";

  function toggleOutline() {
    outlineButton().setAttribute("aria-pressed", String(!outlined()));
    const outline = byId("original").querySelector("svg");
    if (outline) outline.style.display = outlined() ? "" : "none";
  }

  function showNumbers(number, row) {
    const score = columns.mask_score[number];
    const area = columns.mask_area[number];
    const facts = [
      [overruled(number) ? "model's choice" : "probability of the item",
        ...(overruled(number) ? [bdi(row.model), ", "] : []), percent(columns.probability[number])],
      ["lead over the next", percent(columns.margin[number])],
      ["prompt", bdi(row.prompt)],
      ["mask score", score === null ? "not cut" : score.toFixed(3)],
      ["mask area", area === null ? "not cut" : percent(area)],
      ["flags", flagsOf(number).join(", ") || "none"],
      ["label by", columns.human[number] ? "a human" : "the model"],
      ["photo", bdi(row.source), `, ${row.width} x ${row.height}`],
      ["cut-out", bdi(row.name)],
    ];
    byId("numbers").replaceChildren(
      ...facts.flatMap(([name, ...value]) => [element("dt", { text: name }), element("dd", {}, ...value)]),
    );
    byId("top").tBodies[0].replaceChildren(
      ...row.top.map(([item, probability]) => {
        const bar = element("span");
        bar.style.width = percent(probability);
        return element("tr", {},
          element("th", { scope: "row" }, bdi(item)),
          element("td", { className: "graph" }, bar),
          element("td", { className: "number", text: percent(probability) }));
      }),
    );
  }

  function openDetails() {
    if (!view.length) return;
    if (!byId("details").open) byId("details").showModal();
    byId("details").focus();
    showDetails();
  }

  // Choosing another item

  let chosen = 0;
  let choices = [];

  function openChoice() {
    if (!view.length || rebuilt) return;
    byId("choice-text").value = "";
    showChoices();
    byId("choice").showModal();
    byId("choice-text").focus();
  }

  function showChoices() {
    const text = byId("choice-text").value.trim().toLowerCase();
    const starts = (item) => item.toLowerCase().startsWith(text);
    const probable = (rowOf(view[position])?.top || []).map(([item]) => item).reverse(); // what is last here comes first
    choices = report.items.filter((item) => item.toLowerCase().includes(text) && item !== itemOf(view[position]));
    choices.sort((one, other) => starts(other) - starts(one) || probable.indexOf(other) - probable.indexOf(one));
    chosen = 0;
    byId("choice-list").replaceChildren(
      ...choices.map((item, place) => element("li", { role: "option", id: `choice-${place}` }, bdi(item))),
    );
    markChoice();
  }

  function markChoice() {
    [...byId("choice-list").children].forEach((each, place) =>
      each.setAttribute("aria-selected", String(place === chosen)));
    byId("choice-text").setAttribute("aria-activedescendant", choices.length ? `choice-${chosen}` : "");
    byId("choice-list").children[chosen]?.scrollIntoView({ block: "nearest" });
  }

  function takeChoice(place) {
    if (choices[place] === undefined) return;
    byId("choice").close();
    say("wrong", choices[place]);
  }

  function onChoiceKey(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (steps) {
      chosen = Math.max(0, Math.min(choices.length - 1, chosen + steps));
      markChoice();
      event.preventDefault();
    } else if (event.key === "Enter") {
      takeChoice(chosen);
      event.preventDefault();
    }
  }

  // Keys

  const perRow = () => measure().perRow;
  const perPage = () => Math.max(1, Math.floor(byId("viewport").clientHeight / measure().high)) * perRow();
  const KEYS = {
    r: () => say("right"), w: () => say("wrong"), b: () => say("bad mask"), c: openChoice, s: () => move(1), u: undo,
    "?": () => byId("keys").showModal(),
    ArrowLeft: () => move(-1), ArrowRight: () => move(1),
  };
  const GRID_KEYS = {
    ArrowUp: () => move(-perRow()), ArrowDown: () => move(perRow()), Home: () => select(0),
    End: () => select(view.length - 1), PageUp: () => move(-perPage()), PageDown: () => move(perPage()), Enter: openDetails,
  };
  const DETAILS_KEYS = { m: toggleOutline, Escape: () => byId("details").close() };

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("choice").open || byId("keys").open) return;
    const open = byId("details").open;
    const tag = event.target.tagName;
    if (!open && ["INPUT", "SELECT", "TEXTAREA"].includes(tag)) return;
    if (["BUTTON", "SUMMARY", "A", "a"].includes(tag) && ["Enter", " "].includes(event.key)) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const act = KEYS[key] || (open ? DETAILS_KEYS : GRID_KEYS)[key];
    if (!act) return;
    event.preventDefault();
    if (event.repeat && key.length === 1) return; // a key that is held down says one verdict, not a hundred
    act();
  }

  // What stands above the grid

  function showCounts() {
    const { output, review, failed, all, shown } = report.counts;
    const parts = [`${plural(output, "cut-out")} labelled`];
    if (review) parts.push(`${review.toLocaleString("en")} in review`);
    parts.push(`${failed.toLocaleString("en")} failed`);
    if (shown < all) parts.push(`of all ${all.toLocaleString("en")}, this page has the ${shown.toLocaleString("en")} most doubtful`);
    byId("counts").textContent = parts.join(", ");
    byId("title").textContent = report.title;
    const place = shellWord(new Map(report.facts).get("output") ?? report.title);
    byId("apply-command").textContent = `python main.py --output ${place} --apply corrections.csv`;
    document.title = `${report.title}: sam2vit report`;
    byId("facts").replaceChildren(
      ...[...report.facts, ["this page", report.made]].flatMap(([name, value]) =>
        [element("dt", { text: name }), element("dd", {}, bdi(value))]),
    );
  }

  function showFailures() {
    const total = report.counts.failed;
    byId("failures-box").hidden = total === 0;
    byId("failures-count").textContent = `${plural(total, "photo")} failed`;
    for (const group of report.failures) {
      const list = element("ul", {}, ...group.sources.map((source) => element("li", {}, bdi(source))));
      if (group.count > group.sources.length) {
        list.append(element("li", { text: `and ${group.count - group.sources.length} more in failures.jsonl` }));
      }
      byId("failures").append(element("h2", { className: "small" }, `${group.count} in ${group.stage}: `, bdi(group.reason)), list);
    }
  }

  function chart(title, svg, className = "") {
    return element("section", { className: `chart ${className}` }, element("h2", { className: "small", text: title }), svg);
  }

  const canvas = (width, height, role, label) =>
    drawn("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role, "aria-label": label });

  function itemChart() {
    const shownItems = report.items
      .map((item, index) => [item, ...report.per_item[index]])
      .filter(([, output, review]) => output + review > 0)
      .sort((one, other) => other[1] + other[2] - one[1] - one[2]);
    const most = Math.max(1, ...shownItems.map(([, output, review]) => output + review));
    const svg = canvas(310, 19 * shownItems.length, "group", "Photos by item");
    shownItems.forEach(([item, output, review], place) => {
      const top = 19 * place;
      const link = drawn("a", { role: "button", tabindex: "0" });
      const short = item.length > 17 ? `${item.slice(0, 16)}…` : item;
      link.append(
        drawn("title", {}, `${item}: ${output} labelled, ${review} in review`),
        drawn("text", { x: 108, y: top + 13, "text-anchor": "end", class: "name" }, short),
        drawn("rect", { x: 114, y: top + 3, width: (150 * output) / most, height: 12, class: "bar" }),
        drawn("rect", { x: 114 + (150 * output) / most, y: top + 3, width: (150 * review) / most, height: 12, class: "doubtful" }),
        drawn("text", { x: 120 + (150 * (output + review)) / most, y: top + 13 }, (output + review).toLocaleString("en")),
      );
      const choose = () => {
        byId("item").value = item;
        filter();
      };
      link.addEventListener("click", choose);
      link.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          choose();
        }
      });
      svg.append(link);
    });
    return chart(report.counts.review ? "Items (orange: in review)" : "Items", svg, "items");
  }

  function histogram(title, counts, low) {
    const [width, height] = [240, 150];
    const most = Math.max(1, ...counts);
    const total = counts.reduce((sum, count) => sum + count, 0);
    const svg = canvas(width, height + 20, "img", `${title}, ${plural(total, "photo")}`);
    const step = (1 - low) / counts.length;
    counts.forEach((count, place) => {
      const high = count ? Math.max(1, (height * count) / most) : 0;
      const bar = drawn("rect", { x: place * 12 + 1, y: height - high, width: 10, height: high, class: "bar" });
      const from = low + step * place;
      bar.append(drawn("title", {}, `${from.toFixed(2)} to ${(from + step).toFixed(2)}: ${count.toLocaleString("en")}`));
      svg.append(bar);
    });
    svg.append(
      drawn("line", { x1: 0, x2: width, y1: height, y2: height, class: "axis" }),
      drawn("text", { x: 0, y: height + 14 }, String(low)),
      drawn("text", { x: width / 2, y: height + 14, "text-anchor": "middle" }, String((low + 1) / 2)),
      drawn("text", { x: width, y: height + 14, "text-anchor": "end" }, "1"),
      drawn("text", { x: 0, y: 10 }, most.toLocaleString("en")),
    );
    return chart(title, svg);
  }

  function scatter() {
    const cut = columns.mask_score.map((score, number) => (score === null ? -1 : number)).filter((number) => number >= 0);
    const doubtful = cut.slice(0, MOST_DOTS / 2);
    const rest = cut.slice(MOST_DOTS / 2);
    const every = Math.max(1, Math.ceil(rest.length / (MOST_DOTS / 2)));
    const some = [...rest.filter((_, place) => place % every === 0), ...doubtful.reverse()];
    const [width, height] = [240, 150];
    const svg = canvas(width, height + 20, "img", "Mask score by mask area");
    const lowest = Math.min(0.5, ...some.map((number) => columns.mask_score[number]));
    svg.append(drawn("line", { x1: 0, x2: width, y1: height, y2: height, class: "axis" }));
    for (const number of some) {
      const score = (columns.mask_score[number] - lowest) / (1 - lowest);
      const dot = drawn("circle", {
        cx: 4 + (width - 8) * columns.mask_area[number], cy: height - 4 - (height - 8) * Math.min(1, score), r: 3,
        class: columns.flags[number] ? "dot doubtful" : "dot", "data-number": number,
      });
      svg.append(dot);
    }
    svg.append(
      drawn("text", { x: 0, y: height + 14 }, "area 0"),
      drawn("text", { x: width, y: height + 14, "text-anchor": "end" }, "1"),
      drawn("text", { x: 0, y: 10 }, "score 1"),
      drawn("text", { x: 0, y: height - 4 }, lowest.toFixed(2)),
    );
    svg.addEventListener("click", (event) => {
      if (event.target.dataset.number === undefined) return;
      byId("filters").reset();
      filter();
      select(view.indexOf(Number(event.target.dataset.number)));
      openDetails();
    });
    return chart("Masks: score by area (orange: flagged)", svg);
  }

  function showCharts() {
    const charts = [
      itemChart(), histogram("Probability of the item", report.histograms.probability, 0),
      histogram("Lead over the next item", report.histograms.margin, -1),
    ];
    if (columns.mask_score.some((score) => score !== null)) charts.push(scatter());
    byId("charts").replaceChildren(...charts);
  }

  const interval = (share) =>
    !share || share.value === null ? "" : `${percent(share.value)} (${percent(share.low)} to ${percent(share.high)})`;

  function showEvaluation() {
    const found = report.evaluation;
    byId("evaluation-box").hidden = !found && !report.pictures.length;
    if (found?.accuracy) {
      const body = (found.items || []).map((each) =>
        element("tr", {}, element("th", { scope: "row" }, bdi(each.item)),
          ...[interval(each.precision), interval(each.recall), String(each.support ?? "")].map((text) =>
            element("td", { className: "number", text }))));
      const head = ["item", "precision", "recall", "labels"].map((text, place) =>
        element("th", { scope: "col", text, className: place ? "number" : "" }));
      const error = found.expected_calibration_error;
      byId("evaluation").append(element("div", {},
        element("p", { text: `Of ${plural(found.accuracy.count, "label")}, ${interval(found.accuracy)} are right, with 95% intervals.` }),
        element("p", { text: typeof error === "number" ? `Calibration error: ${percent(error)}.` : "" }),
        element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body))));
    }
    byId("evaluation").append(...report.pictures.map((each) => element("img", { src: each.src, alt: each.alt })));
  }

  function fillSelect(id, all, names) {
    const options = names.map((name) => element("option", { value: name, text: name }));
    byId(id).replaceChildren(element("option", { value: "", text: all }), ...options);
  }

  function listen() {
    const later = { timer: 0 };
    for (const kind of ["input", "change"]) {
      byId("filters").addEventListener(kind, () => {
        clearTimeout(later.timer);
        later.timer = setTimeout(filter, 80);
      });
    }
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("filters").addEventListener("reset", () => setTimeout(filter));
    byId("save").addEventListener("click", save);
    byId("clear").addEventListener("click", clear);
    byId("help").addEventListener("click", KEYS["?"]);
    byId("viewport").addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
    window.addEventListener("resize", () => requestAnimationFrame(draw));
    byId("grid").addEventListener("click", (event) => {
      const cell = event.target.closest(".cell");
      if (!cell) return;
      select(Number(cell.dataset.place));
      openDetails();
    });
    byId("details").addEventListener("click", (event) => {
      const button = event.target.closest("[data-key]");
      if (button) (KEYS[button.dataset.key] || DETAILS_KEYS[button.dataset.key])();
    });
    byId("details").addEventListener("close", () => select(position));
    byId("choice-text").addEventListener("input", showChoices);
    byId("choice-text").addEventListener("keydown", onChoiceKey);
    byId("choice-list").addEventListener("click", (event) => takeChoice([...byId("choice-list").children].indexOf(event.target.closest("li"))));
    document.addEventListener("keydown", onKey);
    window.addEventListener("storage", onStorage);
  }

  function index(given) {
    report = given;
    columns = given.columns;
    chunks = new Array(Math.ceil(columns.item.length / report.chunk));
    columns.id.forEach((id, number) => numberById.set(id, number));
    readVerdicts();
    fillSelect("item", "all items", report.items.filter((_, place) => report.per_item[place].some(Boolean)));
    fillSelect("flag", "any or none", report.flags);
    byId("low").value = byId("high").value = "";
    showCounts();
    showFailures();
    byId("charts-box").open = window.innerWidth > 640;
    showCharts();
    showEvaluation();
    readHash();
    listen();
    filter();
  }

  return { index, rows };
})();
