// The form of a training: keeps what is typed, asks for errors as it changes, and draws the pair on the map.
"use strict";
(() => {
  const KEPT = "layersync-training";
  const form = document.getElementById("training");
  if (!form) return;
  const byId = (id) => document.getElementById(id);
  const all = (selector, inside = form) => [...inside.querySelectorAll(selector)];
  const filled = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
  const way = () => new FormData(form).get("page.way");
  const body = () => new URLSearchParams(new FormData(form));

  // What was typed outlives a reload; values of variables are secrets, and stay out.
  function keep() {
    const pairs = [...new FormData(form)].filter(([name]) => name !== "page.value");
    try { localStorage.setItem(KEPT, JSON.stringify(pairs)); } catch { /* full, or forbidden */ }
  }

  function bringBack() {
    let pairs = [];
    try { pairs = JSON.parse(localStorage.getItem(KEPT)) || []; } catch { return; }
    if (!Array.isArray(pairs)) return;
    const names = pairs.filter(([name]) => name === "page.variable").map(([, value]) => value);
    while (all("[name='page.variable']").length < names.length) addVariable();
    all("[name='page.variable']").forEach((input, place) => { input.value = names[place] ?? ""; });
    for (const [name, value] of pairs) {
      if (name === "page.variable") continue;
      const found = form.elements.namedItem(name);
      if (!found) continue;
      const options = found instanceof RadioNodeList ? [...found] : found.options && [...found.options];
      if (options && !options.some((option) => option.value === value)) {
        if (found.add) found.add(new Option(value, value));  // a value that can only lead to an error
        else continue;
      }
      found.value = value;
    }
  }

  function addVariable() {
    const last = all(".variable").at(-1), row = last.cloneNode(true);
    for (const input of row.querySelectorAll("input")) input.value = "";
    last.after(row);
    return row;
  }

  // Errors, and what equals the form.
  let asked = 0, timer = 0;
  function checkSoon() { clearTimeout(timer); timer = setTimeout(check, 350); }

  async function ask(path, then) {
    try {
      const answer = await fetch(path, { method: "POST", body: body(), credentials: "same-origin" });
      if (!answer.ok) throw new Error(answer.status);
      await then(answer);
    } catch { summary([{ key: "", text: form.dataset.lost }], []); }
  }

  async function check() {
    clearTimeout(timer);
    const mine = ++asked;
    await ask("/training/check", async (answer) => {
      const found = await answer.json();
      if (mine === asked) show(found);
    });
  }

  function show(found) {
    show.errors(found.errors);
    summary(found.errors, found.warnings || []);
    if (found.command === undefined) return;
    byId("command").textContent = found.command;
    byId("json").textContent = found.settings;
    byId("name").textContent = found.name;
    for (const input of all("input[data-default]")) {
      const value = (found.in_force || {})[input.name];
      input.placeholder = value === undefined ? input.dataset.default : filled(form.dataset.default, { value });
    }
  }

  show.errors = (errors) => {
    for (const place of all(".error")) place.replaceChildren();
    for (const field of all("[data-key]")) {
      field.classList.remove("wrong");
      for (const input of [field, ...all("[aria-invalid]", field)]) input.removeAttribute("aria-invalid");
    }
    for (const loss of all(".loss")) loss.classList.remove("shows");
    for (const error of errors) {
      const place = error.key && byId(`error-${error.key}`), field = place && place.closest("[data-key]");
      if (!field) continue;
      place.append(paragraph(error));
      field.classList.add("wrong");
      (field.querySelector("input:not([type=radio]), select, textarea") || field).setAttribute("aria-invalid", "true");
      const details = field.closest("details"), loss = field.closest(".its");
      if (details) details.open = true;
      if (loss) loss.closest(".loss").classList.add("shows");
    }
  };

  function paragraph(error, kind = "p") {
    const element = document.createElement(kind);
    element.textContent = error.shown || error.text;
    if (error.shown) {
      const original = Object.assign(document.createElement("span"), { className: "original", lang: "en" });
      original.textContent = error.text;
      element.append(" ", original);
    }
    return element;
  }

  function summary(errors, warnings) {
    const items = errors.map((error) => {
      const item = document.createElement("li"), there = error.key && byId(error.key);
      const told = paragraph(error, there ? "a" : "span");
      if (there) told.href = `#${error.key}`;
      item.append(told);
      return item;
    });
    const list = document.createElement("ul"), notes = warnings.map((text) => {
      const note = Object.assign(document.createElement("p"), { className: "note" });
      note.textContent = text;
      return note;
    });
    list.append(...items);
    const good = Object.assign(document.createElement("p"), { className: "good" });
    good.textContent = form.dataset.good;
    const now = [...(items.length ? [list] : [good]), ...notes], place = byId("summary");
    place.classList.toggle("has-errors", items.length > 0);
    if (place.innerText !== now.map((part) => part.innerText).join("\n")) place.replaceChildren(...now);
  }

  // A link to a field puts the cursor into it.
  byId("summary").addEventListener("click", (event) => {
    const link = event.target.closest("a"), field = link && byId(link.hash.slice(1));
    if (!field) return;
    event.preventDefault();
    const details = field.closest("details");
    if (details) details.open = true;
    field.focus();
    field.scrollIntoView({ block: "center" });
  });

  // The model, its blocks and the map.
  let looked = 0;
  async function look(measure = "") {
    const mine = ++looked;
    await ask(`/training/model${measure ? `?measure=${encodeURIComponent(measure)}` : ""}`, async (answer) => {
      const text = await answer.text();
      if (mine !== looked) return;
      const found = new DOMParser().parseFromString(text, "text/html");
      for (const id of ["facts", "map"]) byId(id)?.replaceWith(found.getElementById(id));
      blocks();
      LayerSyncMap.begin(byId("map"), pair, setPair);
      poll();
    });
  }

  function blocks() {
    for (const input of all("input[data-first]")) {
      const first = Number(input.dataset.first), options = all(`#blocks-${first} option`);
      const number = /^\d+$/.test(input.value.trim()) ? Number(input.value) : NaN;
      const place = first === 1 && number === 0 ? 0 : number - first;
      const output = input.parentElement.querySelector("output"), option = options[place];
      output.classList.toggle("found", Boolean(option));
      output.value = option
        ? filled(form.dataset.block, { number: place + 1, count: options.length, name: option.textContent })
        : options.length ? filled(form.dataset.range, { first, last: options.length - 1 + first }) : "";
    }
    for (const loss of all(".loss")) {
      loss.classList.toggle("filled", all(".its [name]", loss).some((input) => input.value.trim()));
    }
    LayerSyncMap.mark(byId("map"), pair());
  }

  const student = () => byId("layersync_student_block"), teacher = () => byId("layersync_teacher_block");
  function pair() {
    const number = (input) => (input && /^\d+$/.test(input.value.trim()) ? Math.max(1, Number(input.value)) : 0);
    return [number(student()), number(teacher())];
  }

  function setPair(one, other) {
    student().value = one;
    teacher().value = other;
    byId("layersync_enabled-on").checked = true;
    byId("said").textContent = filled(form.dataset.pair, { student: one, teacher: other });
    changed();
  }

  function changed() {
    keep();
    blocks();
    checkSoon();
  }

  function modelChanged() {
    look();
    changed();
  }

  async function poll() {
    const place = byId("measuring");
    if (!place || !place.querySelector("[data-goes-on]")) return;
    await new Promise((done) => setTimeout(done, 2000));
    if (byId("measuring") !== place) return;
    try {
      const text = await (await fetch("/training/measure", { credentials: "same-origin" })).text();
      place.innerHTML = text;  // our own page, escaped there
    } catch { return; }
    if (place.querySelector("[data-goes-on]")) poll();
    else if (!place.querySelector(".bad")) look();
  }

  function measure(path) {
    ask(path, async (answer) => {
      byId("measuring").innerHTML = await answer.text();
      poll();
    });
  }

  form.addEventListener("input", (event) => {
    if (event.target.type === "file" || event.target.id === "measure") return;
    // A half-typed name may be another model's name, on the hub as well.
    if (event.target.id === "model") keep();
    else changed();
  });
  form.addEventListener("change", async (event) => {
    const id = event.target.id;
    if (id === "measure") look(event.target.value);
    else if (["model", "family", "way-train", "way-run"].includes(id)) modelChanged();
    else if (id === "file" && event.target.files[0]) {
      // The text field normalises line ends; the file itself is what is saved again.
      const bytes = new Uint8Array(await event.target.files[0].arrayBuffer());
      byId("page.imported").value = new TextDecoder().decode(bytes);
      byId("original").value = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
      byId("filename").value = event.target.files[0].name;
      byId("read").click();
    }
  });
  form.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.id === "more-variables") addVariable().querySelector("input").focus();
    if (button.id === "measure-now") measure("/training/measure");
    if (button.id === "stop-measuring") measure("/training/measure?stop");
    if (button.classList.contains("pair")) setPair(button.dataset.student, button.dataset.teacher);
    if (button.classList.contains("copy")) copy(button);
    if (button.id === "anew") {
      try { localStorage.removeItem(KEPT); } catch { /* forbidden */ }
      location.assign("/training");
    }
  });
  // Enter in a field must not start a training.
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches("input:not([type=radio])")) event.preventDefault();
    if (event.key === "Enter" && event.target.id === "model") modelChanged();
  });

  async function copy(button) {
    const source = byId(button.dataset.of);
    let told = form.dataset.copied;
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {  // no clipboard without encryption on another machine's address
      getSelection().selectAllChildren(source);
      source.focus();
      told = form.dataset.selected;
    }
    const before = button.textContent;
    button.textContent = told;
    setTimeout(() => { button.textContent = before; }, 2000);
  }

  const told = byId("summary").querySelector("li");
  if ("fresh" in form.dataset) bringBack();
  else {
    keep();
    if (told) byId("summary").focus();
  }
  blocks();
  look();
  if (!told) check();
})();
