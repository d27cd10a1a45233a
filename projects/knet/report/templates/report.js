"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  // what lies outside of an open dialog is not read out
  const say = (text) => { $($("viewer").open ? "viewer-said" : "said").textContent = text; };
  const whole = new Intl.NumberFormat("en");

  // ---- Tables: a click on a column's title sorts; what has no value stays at the end.
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const numbers = head.classList.contains("number");
      const order = head.getAttribute("aria-sort");
      const down = order === "none" ? numbers : order === "ascending";
      const value = (row) => row.cells[column].dataset.value;
      const rows = all("tbody tr", table);
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const found = numbers ? x - y : x.localeCompare(y, undefined, { numeric: true });
        return down ? -found : found;
      });
      table.tBodies[0].append(...rows);
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      say(`Sorted by ${head.textContent.trim()}, ${down ? "descending" : "ascending"}`);
    }));
  }
  for (const matrix of all(".matrix")) {
    matrix.addEventListener("change", (event) => {
      matrix.querySelector(".heat").dataset.mode = event.target.value;
    });
  }

  // ---- Filters: what is to be seen of an image.
  const cards = all(".card");
  const boxes = all("input[name=class]");
  const score = $("score");
  const filter = { classes: new Set(), score: 0, outcome: "all" };

  function readFilter() {
    filter.classes = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    filter.score = score ? Number(score.value) : 0;
    filter.outcome = $("outcome").value;
  }

  function passes(shape) {
    const { label, status, score: value } = shape.dataset;
    if (!filter.classes.has(label)) return false;
    if (value !== undefined && Number(value) < filter.score) return false;
    if (filter.outcome === "match") return status === "match";
    if (filter.outcome === "errors") return status !== "match" && status !== "ignored";
    return true;
  }

  // SVG elements have no `hidden` of their own, but the attribute is styled.
  function applyTo(root) {
    const seen = { truth: 0, prediction: 0, all: 0 };
    for (const shape of all(".shape", root)) {
      const shown = passes(shape);
      shape.toggleAttribute("hidden", !shown);
      const layer = shape.parentNode.classList.contains("truth") ? "truth" : "prediction";
      seen[layer] += shown;
      seen.all += layer === "prediction";
    }
    return seen;
  }

  function applyFilter() {
    readFilter();
    if (score) $("score-value").textContent = filter.score.toFixed(2);
    let images = 0;
    let predicted = 0;
    let total = 0;
    for (const card of cards) {
      const seen = applyTo(card.querySelector("template").content);
      const stack = card.querySelector(".shot .stack");
      if (stack) applyTo(stack);
      const raised = score && filter.score > Number(score.defaultValue);
      const plain = filter.outcome === "all" && filter.classes.size === boxes.length && !raised;
      const found = raised ? seen.prediction : seen.truth + seen.prediction;  // truth has no score
      card.hidden = !(plain || found);
      images += !card.hidden;
      predicted += card.hidden ? 0 : seen.prediction;
      total += seen.all;
    }
    const text = `${whole.format(images)} of ${whole.format(cards.length)} images, `
      + `${whole.format(predicted)} of ${whole.format(total)} predicted segments`;
    $("shown").textContent = text;
    $("nothing").hidden = images > 0;
    return text;
  }

  let waiting = 0;
  function filterSoon() {  // a slider reports many values a second
    clearTimeout(waiting);
    waiting = setTimeout(() => say(applyFilter()), 40);
  }

  const COMPARE = {
    worst: (a, b) => a.quality - b.quality || a.number - b.number,
    best: (a, b) => b.quality - a.quality || a.number - b.number,
    number: (a, b) => a.number - b.number,
    name: (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }),
  };
  function orderCards() {
    const compare = COMPARE[$("order").value];
    cards.sort((a, b) => compare(a.dataset, b.dataset));
    $("cards").append(...cards);
  }

  const form = $("filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    if (event.target.name === "view") $("cards").dataset.view = event.target.value;
    else if (event.target.id === "order") orderCards();
    else filterSoon();
  });
  const tick = (checked) => { for (const box of boxes) box.checked = checked; filterSoon(); };
  if ($("best-score")) {
    $("best-score").addEventListener("click", (event) => {
      score.value = event.currentTarget.dataset.score;
      filterSoon();
    });
  }
  $("all-classes").addEventListener("click", () => tick(true));
  $("no-classes").addEventListener("click", () => tick(false));
  $("reset-filters").addEventListener("click", () => {
    form.reset();
    $("cards").dataset.view = "prediction";
    orderCards();
    filterSoon();
  });

  // ---- Cards: a picture is decoded when it comes near the window.
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      target.querySelector(".shot").append(target.querySelector("template").content.cloneNode(true));
    }
  }, { rootMargin: "600px" });
  for (const card of cards) {
    near.observe(card);
    card.querySelector(".shot").addEventListener("click", () => open(card));
  }

  // ---- Viewer: one image, large.
  const viewer = $("viewer");
  const stage = $("stage");
  const views = all("input[name=viewer-view]");
  const place = { zoom: 1, x: 0, y: 0 };
  let current = null;
  let stack = null;

  function fitScale() {
    const { width, height } = stack.dataset;
    return Math.min(stage.clientWidth / width, stage.clientHeight / height);
  }

  function draw() {
    const scale = fitScale() * place.zoom;
    const size = [stack.dataset.width * scale, stack.dataset.height * scale];
    const limits = [stage.clientWidth, stage.clientHeight];
    ["x", "y"].forEach((axis, k) => {  // some of the picture stays in sight
      const free = limits[k] - size[k];
      place[axis] = free >= 0 ? free / 2 : Math.min(0, Math.max(free, place[axis]));
    });
    stack.style.width = `${size[0]}px`;
    stack.style.height = `${size[1]}px`;
    stack.style.transform = `translate(${place.x}px, ${place.y}px)`;
    stack.style.setProperty("font-size", `${13 / scale}px`);
    $("zoom").textContent = `${Math.round(place.zoom * 100)} %`;
  }

  function zoomTo(zoom, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
    const next = Math.min(16, Math.max(1, zoom));
    place.x = x - (x - place.x) * next / place.zoom;
    place.y = y - (y - place.y) * next / place.zoom;
    place.zoom = next;
    draw();
  }

  function move(dx, dy) {
    place.x += dx;
    place.y += dy;
    draw();
  }

  function cell(row, text, isNumber) {
    const made = row.insertCell();
    made.textContent = text;
    if (isNumber) made.className = "number";
  }

  function listSegments() {
    const view = stage.dataset.view;
    const layer = view === "truth" ? "truth" : "prediction";
    const shapes = all(`.${layer} .shape:not([hidden])`, stack);
    const body = $("segments");
    body.replaceChildren();
    $("segments-title").textContent =
      `${shapes.length} ${layer === "truth" ? "true" : "predicted"} segments`;
    for (const shape of shapes) {
      const data = shape.dataset;
      const row = body.insertRow();
      const head = document.createElement("th");
      const swatch = document.createElement("span");
      head.scope = "row";
      swatch.className = `swatch c${data.label}`;
      head.append(swatch, data.name);
      row.append(head);
      cell(row, data.score === undefined ? "–" : Number(data.score).toFixed(2), true);
      cell(row, Number(data.iou) > 0 ? Number(data.iou).toFixed(2) : "–", true);
      const words = { match: "found", confused: layer === "truth" ? "found as" : "is" };
      cell(row, `${words[data.status] || data.status}${data.as ? ` ${data.as}` : ""}`, false);
      const light = (on) => { row.classList.toggle("lit", on); shape.classList.toggle("lit", on); };
      for (const element of [row, shape]) {
        element.addEventListener("pointerenter", () => light(true));
        element.addEventListener("pointerleave", () => light(false));
      }
      row.tabIndex = 0;
      row.addEventListener("focus", () => light(true));
      row.addEventListener("blur", () => light(false));
    }
  }

  function setView(view) {
    for (const radio of views) radio.checked = radio.value === view;
    stage.dataset.view = view;
    listSegments();
  }

  function open(card) {
    const view = current ? stage.dataset.view : $("cards").dataset.view;
    current = card;
    stage.replaceChildren(card.querySelector("template").content.cloneNode(true));
    stack = stage.querySelector(".stack");
    $("viewer-title").textContent = card.dataset.name;
    $("viewer-facts").textContent = card.querySelector(".quality").textContent.trim() + " %";
    Object.assign(place, { zoom: 1, x: 0, y: 0 });
    if (!viewer.open) {
      viewer.showModal();
      stage.focus();
    }
    setView(view);
    draw();
  }

  function step(by) {
    const shown = cards.filter((card) => !card.hidden);
    open(shown[(shown.indexOf(current) + by + shown.length) % shown.length]);
    say(`${current.dataset.name}, ${$("viewer-facts").textContent}`);
  }

  $("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("close", () => {
    const card = current;
    current = null;
    if (card) card.querySelector(".shot").focus();
  });
  $("zoom-in").addEventListener("click", () => zoomTo(place.zoom * 1.5));
  $("zoom-out").addEventListener("click", () => zoomTo(place.zoom / 1.5));
  $("zoom-fit").addEventListener("click", () => zoomTo(1));
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  for (const radio of views) radio.addEventListener("change", () => setView(radio.value));
  const names = $("names");
  const showNames = () => stage.classList.toggle("names", names.checked);
  names.addEventListener("change", showNames);
  showNames();
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = stage.getBoundingClientRect();
    const factor = Math.exp(-event.deltaY * 0.002);
    zoomTo(place.zoom * factor, event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => stage.setPointerCapture(event.pointerId));
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) move(event.movementX, event.movementY);
  });

  const KEYS = {
    1: () => setView("image"), 2: () => setView("truth"), 3: () => setView("prediction"),
    "+": () => zoomTo(place.zoom * 1.5), "=": () => zoomTo(place.zoom * 1.5),
    "-": () => zoomTo(place.zoom / 1.5), 0: () => zoomTo(1),
    n: () => step(1), p: () => step(-1),
  };
  const ARROWS = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (KEYS[event.key]) KEYS[event.key]();
    else if (ARROWS[event.key] && event.target === stage) move(...ARROWS[event.key]);
    else return;
    event.preventDefault();
  });
  new ResizeObserver(() => { if (current) draw(); }).observe(stage);

  applyFilter();
})();
