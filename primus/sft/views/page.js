"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = data.rows;
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const number = new Intl.NumberFormat("en-US");
  const ROLES = ["system", "user", "assistant", "tool", "format"];
  const MOST_MATCHES = 20000;
  const NAMES = {
    0x00: "NUL", 0x07: "BEL", 0x08: "BS", 0x0b: "VT", 0x0c: "FF", 0x0d: "CR", 0x1b: "ESC", 0x7f: "DEL", 0xa0: "NBSP",
    0xad: "SHY", 0x200b: "ZWSP", 0x200c: "ZWNJ", 0x200d: "ZWJ", 0x200e: "LRM", 0x200f: "RLM", 0x2028: "LS", 0x2029: "PS",
    0x202a: "LRE", 0x202b: "RLE", 0x202c: "PDF", 0x202d: "LRO", 0x202e: "RLO", 0x2060: "WJ", 0x2066: "LRI",
    0x2067: "RLI", 0x2068: "FSI", 0x2069: "PDI", 0xfeff: "BOM",
  };
  const SPECIAL = /[\p{Cc}\p{Cf}\p{Zs}\p{Zl}\p{Zp}\p{Co}\p{Cn}]/u;
  const PICTURE = /[\p{Extended_Pictographic}\p{Emoji_Modifier}\ufe0f]$/u;

  /* State: the row, the filters, the search, the token that has the focus. */
  let current = -1;
  let spans = []; // the element of each token of the row
  let here = -1; // the token that Tab leads to
  let pinned = false;
  let matches = [];
  let match = -1;
  const filter = { turn: "", roles: new Set(), weight: "" };

  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name === "class") element.className = value;
      else if (name in element) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  const count = (amount, noun) => `${number.format(amount)} ${noun}${amount === 1 ? "" : "s"}`;
  const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(part && part < whole / 100 ? 1 : 0)}\u202f%` : "0\u202f%");

  /* What a row's compact data stands for, once per row. Offsets count characters, a JavaScript string UTF-16 units. */
  function prepare(row) {
    if (row.units || row.problem !== undefined) return row;
    const size = row.ids.length;
    row.starts = new Int32Array(size);
    row.ends = new Int32Array(size);
    for (let t = 0, start = 0; t < size; t++) {
      start += row.steps[t];
      row.starts[t] = start;
      row.ends[t] = start + row.widths[t];
    }
    row.weight = new Float64Array(size);
    row.kind = new Array(size);
    let at = 0;
    for (const [weight, length] of row.weights) { row.weight.fill(weight, at, at + length); at += length; }
    at = 0;
    for (const [kind, length] of row.kinds) { row.kind.fill(kind, at, at + length); at += length; }
    row.section = new Int32Array(size);
    row.sections.forEach((section, s) => {
      row.section.fill(s, section.first, section.last);
      section.trained = 0;
      for (let t = section.first; t < section.last; t++) if (row.weight[t] > 0) section.trained++;
    });
    row.trained = row.sections.reduce((sum, section) => sum + section.trained, 0);
    row.distinct = [...new Set(row.weight)].filter((weight) => weight > 0).sort((a, b) => a - b);
    const units = [];
    let unit = 0;
    for (const character of row.text) { units.push(unit); unit += character.length; }
    units.push(unit);
    row.units = Uint32Array.from(units);
    return row;
  }

  const slice = (row, start, end) => row.text.slice(row.units[start], row.units[end]);
  const isOut = (row, t) => row.cut !== null && t >= row.cut;
  const tokenText = (row, t) => (row.ends[t] > row.starts[t] ? slice(row, row.starts[t], row.ends[t]) : row.names[row.ids[t]] ?? "");

  /* Text with everything visible in it. What must not work (a change of direction) is named instead of written. */
  function appendVisible(element, text) {
    let plain = "";
    const flush = () => { if (plain) element.append(plain); plain = ""; };
    for (const character of text) {
      if (!SPECIAL.test(character) || (character === "\u200d" && PICTURE.test(plain))) plain += character;
      else {
        flush();
        if (character === " ") element.append(make("i", { class: "s" }, " "));
        else if (character === "\n") element.append(make("i", { class: "n" }, "\n"));
        else if (character === "\t") element.append(make("i", { class: "tab" }, "\t"));
        else {
          const code = character.codePointAt(0);
          const name = NAMES[code] ?? `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
          element.append(make("i", { class: "code" }, name));
        }
      }
    }
    flush();
  }

  function tokenElement(row, t) {
    const start = row.starts[t], end = row.ends[t];
    const reached = t ? row.ends[t - 1] : 0;
    const weight = row.weight[t];
    const classes = ["t"];
    if (t % 2) classes.push("even");
    if (row.kind[t] !== "text") classes.push(row.kind[t]);
    if (weight > 0) classes.push("trained");
    if (weight > 0 && weight !== 1) classes.push("other");
    if (isOut(row, t)) classes.push("out");
    const element = make("span", { role: "option", tabIndex: -1 });
    element.dataset.t = t;
    element.setAttribute("aria-selected", "false");
    if (end <= reached && end > start) {
      classes.push("part");
      element.append(row.bytes[t] ?? "…");
    } else {
      const from = Math.max(start, reached);
      appendVisible(element, end > start ? slice(row, from, end) : tokenText(row, t));
    }
    element.className = classes.join(" ");
    return element;
  }

  const lostElement = (text) => {
    const element = make("span", { class: "lost", title: "no token stands for this: the tokenizer loses it" });
    appendVisible(element, text);
    return element;
  };

  /* Filters: a token is shown if its turn, its role and its weight are asked for. */
  function passes(row, t) {
    const section = row.sections[row.section[t]];
    if (filter.turn !== "" && String(section.turn) !== filter.turn) return false;
    if (filter.roles.size && !filter.roles.has(section.role)) return false;
    if (filter.weight === "") return true;
    if (filter.weight === "trained") return row.weight[t] > 0;
    if (filter.weight === "context") return row.weight[t] === 0;
    return row.weight[t] === Number(filter.weight);
  }
  const isFiltering = () => filter.turn !== "" || filter.roles.size > 0 || filter.weight !== "";

  function show(index, { focus = false } = {}) {
    current = Math.min(Math.max(index, 0), rows.length - 1);
    const row = prepare(rows[current]);
    hideCard();
    here = -1;
    spans = [];
    byId("previous").disabled = current === 0;
    byId("next").disabled = current === rows.length - 1;
    byId("where").textContent = `Row ${number.format(current + 1)} of ${number.format(rows.length)}`;
    for (const button of byId("row-list").querySelectorAll("button")) {
      const isCurrent = Number(button.dataset.row) === current;
      if (isCurrent) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
      if (isCurrent && button.offsetParent) button.scrollIntoView({ block: "nearest" });
    }
    history.replaceState(null, "", `#${current + 1}`);
    showSummary(row);
    for (const id of ["filters", "legend"]) byId(id).hidden = row.problem !== undefined;
    if (row.problem === undefined) { showFilters(row); showLegend(row); }
    showTurns(row);
    markMatches();
    const facts = row.problem === undefined ? `${count(row.ids.length, "token")}, ${number.format(row.trained)} trained` : "not valid";
    byId("status").textContent = `Row ${current + 1} of ${rows.length}: ${row.origin}, ${facts}`;
    document.body.classList.remove("rows-open");
    byId("where").setAttribute("aria-expanded", "false");
    window.scrollTo(0, 0);
    if (focus) byId("turns").focus({ preventScroll: true });
  }

  function showSummary(row) {
    const summary = byId("summary");
    summary.replaceChildren(make("h1", {}, make("bdi", {}, row.origin)));
    if (row.problem !== undefined) {
      summary.append(make("p", { class: "problem" }, row.problem));
      return;
    }
    const size = row.ids.length;
    const turns = row.sections.filter((section) => section.turn !== null).length;
    const facts = [
      ["tokens", number.format(size)], ["trained", number.format(row.trained)], ["share trained", percent(row.trained, size)],
      ["turns", number.format(turns)],
    ];
    if (data.max_seq_length !== null) facts.push([`of seq_length ${number.format(data.max_seq_length)}`, percent(size - 1, data.max_seq_length)]);
    summary.append(make("dl", { class: "stats" }, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))));
    const strip = make("div", { class: "strip", title: "The whole row; trained stretches are green. Click to go there." });
    strip.setAttribute("aria-hidden", "true");
    for (let t = 0; t < size;) {
      const look = (u) => (isOut(row, u) ? "out" : row.weight[u] > 0 ? "on" : row.sections[row.section[u]].role);
      let end = t + 1;
      while (end < size && look(end) === look(t)) end++;
      const piece = make("i", { class: look(t) });
      piece.style.flexGrow = end - t;
      piece.dataset.t = t;
      strip.append(piece);
      t = end;
    }
    strip.addEventListener("click", (event) => { if (event.target.dataset.t) goTo(Number(event.target.dataset.t)); });
    summary.append(strip);
    if (row.notes.length) summary.append(make("ul", { class: "notes" }, ...row.notes.map((note) => make("li", {}, note))));
  }

  function showFilters(row) {
    const turns = [...new Set(row.sections.map((section) => section.turn).filter((turn) => turn !== null))].sort((a, b) => a - b).map(String);
    if (filter.turn !== "" && !turns.includes(filter.turn)) turns.push(filter.turn);
    const role = (turn) => row.sections.find((section) => String(section.turn) === turn)?.role ?? "not here";
    fill(byId("filter-turn"), [["", "all"], ...turns.map((turn) => [turn, `${turn} · ${role(turn)}`])], filter.turn);
    const weights = row.distinct.map(String);
    if (!["", "trained", "context", ...weights].includes(filter.weight)) weights.push(filter.weight);
    fill(byId("filter-weight"), [["", "all"], ["trained", "trained"], ["context", "context (0)"], ...weights.map((weight) => [weight, `exactly ${weight}`])], filter.weight);
    const here = new Set([...row.sections.map((section) => section.role), ...filter.roles]);
    byId("filter-roles").replaceChildren(...ROLES.filter((name) => here.has(name)).map((name) => {
      const button = make("button", { type: "button" }, name);
      button.dataset.role = name;
      button.setAttribute("aria-pressed", String(filter.roles.has(name)));
      return button;
    }));
  }

  function fill(select, choices, value) {
    select.replaceChildren(...choices.map(([key, text]) => make("option", { value: key }, text)));
    select.value = value;
  }

  function showLegend(row) {
    const kinds = new Set(row.kind);
    const partial = row.distinct.some((weight) => weight !== 1);
    const items = [["trained", "target", "trained"], ["", "text", "context"]];
    if (partial) items.splice(1, 0, ["trained other", "target", "trained with another weight than 1"]);
    if (kinds.has("control")) items.push(["control", "<…>", "control token"]);
    if (kinds.has("marker")) items.push(["marker", "<…>", "marker of the format, in plain tokens"]);
    if (Object.keys(row.bytes).length) items.push(["part", "A9", "further bytes of the character before"]);
    if (kinds.has("unknown")) items.push(["unknown", "x", "unknown to the tokenizer"]);
    if (row.notes.some((note) => note.startsWith("the tokenizer loses"))) items.push(["lost", "x", "lost: no token stands for it"]);
    if (row.cut !== null) items.push(["out", "text", "cut off"]);
    byId("legend").replaceChildren(...items.map(([look, sample, text]) => make("li", {}, make("span", { class: `t ${look}` }, sample), text)));
  }

  function showTurns(row) {
    const holder = byId("turns");
    if (row.problem !== undefined) { holder.replaceChildren(); byId("shown").textContent = ""; return; }
    spans = new Array(row.ids.length);
    const cards = document.createDocumentFragment();
    let shown = 0;
    row.sections.forEach((section, s) => {
      const body = make("div", { class: "tokens", role: "listbox" });
      const title = section.turn === null ? "written by the format" : `turn ${section.turn}, ${section.role}`;
      body.setAttribute("aria-label", `${title}: tokens`);
      let visible = 0;
      for (let t = section.first; t < section.last; t++) {
        if (t === row.cut) body.append(cutLine(row));
        const reached = t ? row.ends[t - 1] : 0;
        if (row.starts[t] > reached) body.append(lostElement(slice(row, reached, row.starts[t])));
        if (!passes(row, t)) continue;
        body.append((spans[t] = tokenElement(row, t)));
        visible++;
      }
      if (s === row.sections.length - 1 && row.units.length - 1 > row.ends[row.ids.length - 1]) {
        body.append(lostElement(slice(row, row.ends[row.ids.length - 1], row.units.length - 1)));
      }
      shown += visible;
      if (visible) cards.append(make("section", { class: `turn ${section.role}` }, turnTitle(row, section), body));
    });
    if (!shown) cards.append(make("p", { class: "nothing" }, "No token of this row passes the filter."));
    holder.replaceChildren(cards);
    byId("clear").hidden = !isFiltering();
    byId("shown").textContent = isFiltering() ? `${number.format(shown)} of ${count(row.ids.length, "token")}` : "";
    const first = spans.findIndex((span) => span !== undefined);
    if (first >= 0) reach(first);
  }

  function cutLine(row) {
    const size = row.ids.length - row.cut;
    return make("div", { class: "cut" }, `what fits seq_length ${number.format(data.max_seq_length)} ends here; the ${count(size, "token")} from here on ${size === 1 ? "is" : "are"} cut off`);
  }

  function turnTitle(row, section) {
    const size = section.last - section.first;
    const title = make("h2", {}, make("b", {}, section.role));
    title.append(section.turn === null ? "belongs to no message" : `turn ${section.turn}`, make("span", {}, count(size, "token")));
    if (section.trained) {
      const weights = [...new Set(row.weight.slice(section.first, section.last))].filter((weight) => weight > 0).sort((a, b) => a - b);
      title.append(make("span", {}, `${number.format(section.trained)} trained`), shareBar(section.trained, size));
      title.append(make("span", {}, `weight ${weights.join(", ")}`));
    } else title.append(make("span", {}, "context"));
    for (const note of section.notes) title.append(make("span", { class: "why" }, note));
    return title;
  }

  function shareBar(part, whole) {
    const bar = make("i");
    bar.style.width = `${whole ? (100 * part) / whole : 0}%`;
    const holder = make("span", { class: "share" }, bar);
    holder.setAttribute("aria-hidden", "true");
    return holder;
  }

  /* The list of rows. */
  function listRows() {
    byId("row-list").replaceChildren(...rows.map((row, index) => {
      const name = row.origin.slice(row.origin.lastIndexOf("/") + 1);
      const button = make("button", { type: "button", title: row.origin }, make("span", { class: "number" }, String(index + 1)), make("span", { class: "origin" }, make("bdi", {}, name)));
      button.dataset.row = index;
      if (row.problem !== undefined) button.append(make("span", { class: "bad" }, "not valid"));
      else {
        const trained = row.weights.reduce((sum, [weight, length]) => sum + (weight > 0 ? length : 0), 0);
        button.append(make("span", { class: "facts" }, `${count(row.ids.length, "token")}, ${number.format(trained)} trained`), shareBar(trained, row.ids.length));
      }
      return make("li", {}, button);
    }));
  }

  /* The card of a token. */
  function describe(row, t, short = false) {
    const holder = make("code");
    const text = tokenText(row, t);
    holder.append(short && text.length > 24 ? `${text.slice(0, 24)}…` : text);
    holder.textContent = JSON.stringify(holder.textContent).slice(1, -1);
    return [holder, ` id ${row.ids[t]}`];
  }

  function showCard(t, anchor) {
    const row = rows[current];
    const card = byId("card");
    const section = row.sections[row.section[t]];
    const glyphs = make("span", { class: "glyphs t" });
    appendVisible(glyphs, tokenText(row, t));
    const facts = [["token", [`${number.format(t)} (0 to ${number.format(row.ids.length - 1)})`]], ["id", [String(row.ids[t])]]];
    if (row.ends[t] > row.starts[t]) facts.push(["characters", [`[${row.starts[t]}, ${row.ends[t]})`]]);
    else facts.push(["characters", ["none: it is not in the text"]]);
    if (row.bytes[t]) facts.push(["bytes", [make("code", {}, row.bytes[t]), " of a character that several tokens share"]]);
    facts.push(["turn", [section.turn === null ? "none, written by the format" : `${section.turn}, ${section.role}`]]);
    if (row.kind[t] === "control") facts.push(["kind", ["control token"]]);
    if (row.kind[t] === "marker") facts.push(["kind", ["part of a marker that is no control token"]]);
    if (row.kind[t] === "unknown") facts.push(["kind", ["stands for characters that the tokenizer does not know"]]);
    const trained = row.weight[t] > 0;
    facts.push(["trained", trained ? [make("span", { class: "yes" }, "yes"), `, weight ${row.weight[t]}`] : ["no, weight 0"]]);
    if (isOut(row, t)) facts.push(["predicted", ["never: it is cut off"]]);
    else if (t === 0) facts.push(["predicted", ["never: nothing stands before it"]]);
    else facts.push([trained ? "target of" : "label of", [`position ${number.format(t - 1)}, after `, ...describe(row, t - 1, true)]]);
    if (t + 1 < row.ids.length && !isOut(row, t + 1)) {
      facts.push(["predicts", [...describe(row, t + 1, true), row.weight[t + 1] > 0 ? `, weight ${row.weight[t + 1]}` : ", not trained"]]);
    } else facts.push(["predicts", [isOut(row, t) ? "nothing" : "nothing: the sequence ends"]]);
    const close = make("button", { type: "button", "aria-label": "Close" }, "×");
    close.addEventListener("click", hideCard);
    card.replaceChildren(
      make("div", { class: "what" }, glyphs, close),
      make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, ...value)])),
    );
    close.hidden = !pinned;
    card.classList.toggle("pinned", pinned);
    card.hidden = false;
    for (const old of document.querySelectorAll(".t.here")) { old.classList.remove("here"); old.removeAttribute("aria-describedby"); old.setAttribute("aria-selected", "false"); }
    anchor.classList.add("here");
    anchor.setAttribute("aria-describedby", "card");
    anchor.setAttribute("aria-selected", String(pinned));
    placeCard();
  }

  /* Beside its token, wherever that has been scrolled to. */
  function placeCard() {
    const anchor = document.querySelector(".t.here");
    const card = byId("card");
    if (!anchor) return;
    const box = anchor.getClientRects()[0] ?? anchor.getBoundingClientRect();
    if (!pinned && (box.bottom < 0 || box.top > innerHeight)) return hideCard();
    const below = box.bottom + 8 + card.offsetHeight < innerHeight;
    card.style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - 8 - card.offsetHeight)}px`;
    card.style.left = `${Math.max(12, Math.min(box.left, innerWidth - card.offsetWidth - 12))}px`;
  }

  function hideCard() {
    pinned = false;
    byId("card").hidden = true;
    for (const old of document.querySelectorAll(".t.here")) { old.classList.remove("here"); old.removeAttribute("aria-describedby"); old.setAttribute("aria-selected", "false"); }
  }

  /* One token of the row is in the order of Tab; arrows walk on from it. */
  function reach(t) {
    if (spans[here]) spans[here].tabIndex = -1;
    here = t;
    spans[t].tabIndex = 0;
  }

  function goTo(t) {
    let nearest = t;
    while (nearest < spans.length && !spans[nearest]) nearest++;
    if (!spans[nearest]) return;
    pinned = false;
    reach(nearest);
    spans[nearest].focus({ preventScroll: true });
    spans[nearest].scrollIntoView({ block: "center" });
    showCard(nearest, spans[nearest]);
  }

  function step(t, by) {
    for (let u = t + by; u >= 0 && u < spans.length; u += by) if (spans[u]) return u;
    return t;
  }

  /* The token of the next line, up or down, that stands nearest. */
  function line(t, by) {
    const box = spans[t].getClientRects()[0];
    if (!box) return t;
    const x = (box.left + box.right) / 2;
    let best = t, distance = Infinity, top = null;
    for (let u = step(t, by), v = t; u !== v; v = u, u = step(u, by)) {
      const other = spans[u].getClientRects()[0];
      if (!other || Math.abs(other.top - box.top) < box.height / 2) continue;
      if (top === null) top = other.top;
      else if (Math.abs(other.top - top) > box.height / 2) break;
      const off = Math.abs((other.left + other.right) / 2 - x);
      if (off < distance) { distance = off; best = u; }
    }
    return best;
  }

  function stretch(by) {
    const row = rows[current];
    if (row.problem !== undefined) return;
    const isTrained = (t) => t >= 0 && t < row.ids.length && row.weight[t] > 0 && spans[t] !== undefined;
    const begins = (t) => isTrained(t) && !isTrained(t - 1);
    for (let t = here + by; t >= 0 && t < row.ids.length; t += by) if (begins(t)) return goTo(t);
  }

  const tokenOf = (event) => event.target.closest?.("#turns .t[data-t]");
  const turns = byId("turns");
  turns.addEventListener("pointerover", (event) => {
    const span = tokenOf(event);
    if (event.pointerType === "touch" || pinned) return;
    if (span) showCard(Number(span.dataset.t), span);
    else if (!turns.contains(document.activeElement)) hideCard();
  });
  turns.addEventListener("pointerleave", () => { if (!pinned && !document.activeElement?.matches(".t:focus-visible")) hideCard(); });
  turns.addEventListener("focusin", (event) => {
    const span = tokenOf(event);
    if (span && !pinned) showCard(Number(span.dataset.t), span);
  });
  turns.addEventListener("focusout", () => { if (!pinned) hideCard(); });
  turns.addEventListener("click", (event) => {
    const span = tokenOf(event);
    if (!span) return;
    const t = Number(span.dataset.t);
    const isSame = pinned && span.classList.contains("here");
    hideCard();
    reach(t);
    if (isSame) return;
    pinned = true;
    span.focus({ preventScroll: true });
    showCard(t, span);
  });
  turns.addEventListener("keydown", (event) => {
    const span = tokenOf(event);
    if (!span || event.ctrlKey || event.metaKey || event.altKey) return;
    const t = Number(span.dataset.t);
    const row = rows[current];
    const section = row.sections[row.section[t]];
    let to = t;
    if (event.key === "ArrowRight") to = step(t, 1);
    else if (event.key === "ArrowLeft") to = step(t, -1);
    else if (event.key === "ArrowDown") to = line(t, 1);
    else if (event.key === "ArrowUp") to = line(t, -1);
    else if (event.key === "Home") to = step(section.first - 1, 1);
    else if (event.key === "End") to = step(section.last, -1);
    else if (event.key === " " || event.key === "Enter") {
      pinned = !pinned;
      showCard(t, span);
      event.preventDefault();
      return;
    } else return;
    event.preventDefault();
    pinned = false;
    reach(to);
    spans[to].focus({ preventScroll: true });
    spans[to].scrollIntoView({ block: "nearest" });
    showCard(to, spans[to]);
  });
  addEventListener("scroll", placeCard, { passive: true });
  addEventListener("resize", placeCard);

  /* Search, over all rows: text, or # and a token's id. */
  function lowered(row) {
    if (row.lowered === undefined) {
      const plain = row.text.toLowerCase();
      // A few letters change their length; then every character is lowered alone, or stays.
      row.lowered = plain.length === row.text.length ? plain
        : Array.from(row.text, (c) => (c.toLowerCase().length === c.length ? c.toLowerCase() : c)).join("");
    }
    return row.lowered;
  }

  function search() {
    const query = byId("search").value;
    matches = [];
    match = -1;
    const id = /^#(\d+)$/.exec(query.trim());
    if (query) rows.forEach((row, index) => {
      if (row.problem !== undefined) return;
      prepare(row);
      if (id) row.ids.forEach((token, t) => { if (token === Number(id[1])) add(row, index, t, t + 1); });
      else findText(row, index, query.toLowerCase());
    });
    const perRow = new Map();
    for (const found of matches) perRow.set(found.row, (perRow.get(found.row) ?? 0) + 1);
    for (const button of byId("row-list").querySelectorAll("button")) {
      button.querySelector(".found")?.remove();
      const amount = perRow.get(Number(button.dataset.row));
      if (amount) button.append(make("em", { class: "found" }, number.format(amount)));
    }
    if (matches.length) {
      const from = matches.findIndex((found) => found.row >= current);
      goToMatch(from < 0 ? 0 : from);
    } else { markMatches(); showMatchCount(); }
  }

  function add(row, index, first, last) {
    if (matches.length >= MOST_MATCHES) return;
    for (let t = first; t < last; t++) if (passes(row, t)) { matches.push({ row: index, first, last }); return; }
  }

  function findText(row, index, query) {
    const text = lowered(row);
    let t = 0;
    for (let at = text.indexOf(query); at >= 0 && matches.length < MOST_MATCHES; at = text.indexOf(query, at + query.length)) {
      while (t < row.ids.length && row.units[row.ends[t]] <= at) t++;
      let last = t;
      while (last < row.ids.length && row.units[row.starts[last]] < at + query.length) last++;
      add(row, index, t, last);
    }
  }

  function goToMatch(index) {
    match = (index + matches.length) % matches.length;
    const found = matches[match];
    if (found.row !== current) show(found.row);
    markMatches();
    let t = found.first;
    while (t < found.last && !spans[t]) t++;
    spans[t]?.scrollIntoView({ block: "center" });
    if (spans[t]) reach(t);
    showMatchCount();
  }

  function markMatches() {
    for (const old of turns.querySelectorAll(".found")) old.classList.remove("found", "now");
    matches.forEach((found, index) => {
      if (found.row !== current) return;
      for (let t = found.first; t < found.last; t++) {
        spans[t]?.classList.add("found");
        if (index === match) spans[t]?.classList.add("now");
      }
    });
  }

  function showMatchCount() {
    const query = byId("search").value;
    const limit = matches.length >= MOST_MATCHES ? "+" : "";
    byId("matches").textContent = !query ? "" : matches.length ? `${number.format(match + 1)} / ${number.format(matches.length)}${limit}` : "none";
    for (const id of ["previous-match", "next-match"]) byId(id).disabled = !matches.length;
  }

  const nextMatch = (by) => { if (matches.length) goToMatch(match + by); };
  let waiting = 0;
  byId("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 120); });
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); nextMatch(event.shiftKey ? -1 : 1); }
    if (event.key === "Escape") { byId("search").value = ""; search(); byId("search").blur(); }
  });
  byId("search-form").addEventListener("submit", (event) => event.preventDefault());
  byId("next-match").addEventListener("click", () => nextMatch(1));
  byId("previous-match").addEventListener("click", () => nextMatch(-1));

  /* Filters. */
  function refilter() {
    const row = rows[current];
    hideCard();
    if (row.problem === undefined) { showFilters(row); showTurns(row); }
    if (byId("search").value) search();
  }
  byId("filter-turn").addEventListener("change", (event) => { filter.turn = event.target.value; refilter(); });
  byId("filter-weight").addEventListener("change", (event) => { filter.weight = event.target.value; refilter(); });
  byId("filter-roles").addEventListener("click", (event) => {
    const role = event.target.dataset.role;
    if (!role) return;
    if (!filter.roles.delete(role)) filter.roles.add(role);
    refilter();
    byId("filter-roles").querySelector(`[data-role="${role}"]`).focus();
  });
  byId("clear").addEventListener("click", () => {
    filter.turn = filter.weight = "";
    filter.roles.clear();
    refilter();
    byId("filter-turn").focus();
  });

  /* Rows, looks, help. */
  const nextRow = (by) => { if (current + by >= 0 && current + by < rows.length) show(current + by); };
  byId("next").addEventListener("click", () => nextRow(1));
  byId("previous").addEventListener("click", () => nextRow(-1));
  function toggleRows() {
    const isOpen = document.body.classList.toggle("rows-open");
    byId("where").setAttribute("aria-expanded", String(isOpen));
    if (isOpen) window.scrollTo(0, 0);
    byId("row-list").querySelector("[aria-current]")?.focus();
  }
  byId("where").addEventListener("click", toggleRows);
  byId("row-list").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) show(Number(button.dataset.row), { focus: true });
  });
  function toggleWhitespace() {
    byId("whitespace").setAttribute("aria-pressed", String(document.body.classList.toggle("spaces")));
  }
  byId("whitespace").addEventListener("click", toggleWhitespace);
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const applyTheme = () => { root.dataset.theme = chosen ?? (prefersDark.matches ? "dark" : "light"); };
  prefersDark.addEventListener("change", applyTheme);
  function toggleTheme() { chosen = root.dataset.theme === "dark" ? "light" : "dark"; applyTheme(); }
  byId("theme").addEventListener("click", toggleTheme);
  const help = byId("help-text");
  byId("help").addEventListener("click", () => help.showModal());

  const KEYS = {
    j: () => nextRow(1), k: () => nextRow(-1), t: () => stretch(1), T: () => stretch(-1), n: () => nextMatch(1), N: () => nextMatch(-1),
    w: toggleWhitespace, d: toggleTheme, r: toggleRows, "?": () => help.showModal(), Escape: hideCard,
    "/": () => byId("search").select(),
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open || event.target.matches("input, select")) return;
    if (Object.hasOwn(KEYS, event.key)) { event.preventDefault(); KEYS[event.key](); }
  });
  const rowOfAddress = () => Number(location.hash.slice(1)) - 1;
  addEventListener("hashchange", () => { if (rows[rowOfAddress()] && rowOfAddress() !== current) show(rowOfAddress()); });

  applyTheme();
  listRows();
  showMatchCount();
  show(rows[rowOfAddress()] ? rowOfAddress() : 0);
})();
