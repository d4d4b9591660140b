"use strict";
// The map of clips: one dot per clip, coloured and shaped by label. Arrow keys move, Enter or a click plays.
(() => {
  const SIZE = 720, MARGIN = 28, SVG = "http://www.w3.org/2000/svg";
  // Okabe and Ito's colours without yellow and black, each with two shapes, so that no label rests on colour alone.
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8d8d8d"];
  const SHAPES = [
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z", // disc
    "M-4.6 -4.6H4.6V4.6H-4.6Z", // square
    "M0 -6L5.4 4H-5.4Z", // triangle
    "M0 -6.2L6.2 0L0 6.2L-6.2 0Z", // diamond
    "M-1.9 -5.6H1.9V-1.9H5.6V1.9H1.9V5.6H-1.9V1.9H-5.6V-1.9H-1.9Z", // cross
    "M0 6L5.4 -4H-5.4Z", // triangle, point down
    "M0 -6L1.5 -2H5.7L2.3 0.6L3.6 4.9L0 2.4L-3.6 4.9L-2.3 0.6L-5.7 -2H-1.5Z", // star
    "M-3 -5.2H3L6 0L3 5.2H-3L-6 0Z", // hexagon
  ];
  const maps = JSON.parse(document.getElementById("maps").textContent);
  const layerSelect = document.getElementById("layer");
  const svg = document.querySelector(".plot svg");
  const layerOfPoints = svg.querySelector(".points");
  const ring = svg.querySelector(".current");
  const tip = document.querySelector(".tip");
  const legend = document.querySelector(".legend");
  const says = document.querySelector(".playing p");
  const audio = document.querySelector("audio");
  const explained = document.querySelector(".explained");
  let map = null, current = -1, highlighted = null;

  function style(label) {
    const index = map.order.indexOf(label);
    return { colour: COLOURS[index % COLOURS.length], shape: SHAPES[index % SHAPES.length] };
  }

  function make(name, attributes, parent) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    parent.append(element);
    return element;
  }

  function draw() {
    const data = maps[Number(layerSelect.value)];
    const amounts = new Map();
    for (const label of data.labels) amounts.set(label, (amounts.get(label) ?? 0) + 1);
    map = { ...data, order: data.legend };
    const xs = data.points.map((p) => p[0]), ys = data.points.map((p) => p[1]);
    const low = [Math.min(...xs), Math.min(...ys)], high = [Math.max(...xs), Math.max(...ys)];
    const span = Math.max(high[0] - low[0], high[1] - low[1]) || 1; // one scale for both axes
    const middle = [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2];
    map.places = data.points.map((p) => [
      SIZE / 2 + ((p[0] - middle[0]) / span) * (SIZE - 2 * MARGIN),
      SIZE / 2 - ((p[1] - middle[1]) / span) * (SIZE - 2 * MARGIN),
    ]);
    layerOfPoints.replaceChildren();
    map.elements = map.places.map(([x, y], index) => {
      const { colour, shape } = style(data.labels[index]);
      const open = data.splits[index] === "train";
      const element = make("path", {
        d: shape, transform: `translate(${x.toFixed(2)} ${y.toFixed(2)})`, class: "point", fill: open ? "none" : colour,
        stroke: colour, "pointer-events": "all", tabindex: -1, role: "button", "aria-label": describe(index),
      }, layerOfPoints);
      element.dataset.index = index;
      return element;
    });
    legend.replaceChildren();
    for (const label of map.order) {
      const item = document.createElement("li"), button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(label === highlighted));
      const sample = make("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, button);
      make("path", { d: style(label).shape, fill: style(label).colour }, sample);
      const name = document.createElement("span"), amount = document.createElement("span");
      name.textContent = label;
      amount.textContent = amounts.get(label);
      amount.className = "amount";
      button.append(name, amount);
      button.addEventListener("click", () => highlight(label === highlighted ? null : label));
      item.append(button);
      legend.append(item);
    }
    explained.textContent = data.explained;
    if (!map.order.includes(highlighted)) highlighted = null;
    highlight(highlighted);
    hide();
    if (map.elements.length) map.elements[Math.max(0, Math.min(current, map.elements.length - 1))].tabIndex = 0;
  }

  function describe(index) {
    const split = map.splits[index] === "train" ? "training" : map.splits[index];
    return `${map.track_ids[index]}, ${map.labels[index]}, ${split}`;
  }

  function highlight(label) {
    highlighted = label;
    map.elements.forEach((element, index) => {
      element.classList.toggle("faint", label !== null && map.labels[index] !== label);
    });
    [...legend.querySelectorAll("button")].forEach((button, index) => {
      button.setAttribute("aria-pressed", String(map.order[index] === label));
    });
  }

  function show(index) {
    const [x, y] = map.places[index];
    current = index;
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
    ring.removeAttribute("display");
    const title = document.createElement("b");
    title.textContent = map.track_ids[index];
    tip.replaceChildren(title, map.labels[index], map.splits[index] === "train" ? " (training)" : "");
    tip.hidden = false;
    const scale = svg.clientWidth / SIZE, right = x > SIZE / 2, below = y < SIZE / 2;
    tip.style.left = right ? "" : `${x * scale + 12}px`;
    tip.style.right = right ? `${(SIZE - x) * scale + 12}px` : "";
    tip.style.top = below ? `${y * scale + 12}px` : "";
    tip.style.bottom = below ? "" : `${(SIZE - y) * scale + 12}px`;
  }

  function hide() {
    tip.hidden = true;
    ring.setAttribute("display", "none");
  }

  function play(index) {
    show(index);
    const path = map.audio_paths[index];
    if (path === null) {
      audio.pause();
      audio.hidden = true;
      says.textContent = `${describe(index)}: its recording is not on this machine.`;
      return;
    }
    says.textContent = `Playing ${describe(index)}`;
    audio.hidden = false;
    audio.src = path;
    audio.play().catch((error) => {
      if (error.name !== "AbortError") says.textContent = `${describe(index)}: the recording cannot be played.`;
    });
  }

  // The nearest dot into that direction, where sideways distance counts double.
  function neighbour(index, dx, dy) {
    const [x0, y0] = map.places[index];
    let best = -1, least = Infinity;
    map.places.forEach(([x, y], other) => {
      const along = (x - x0) * dx + (y - y0) * dy, aside = Math.abs((x - x0) * dy) + Math.abs((y - y0) * dx);
      const away = along + 2 * aside;
      if (other !== index && along > 0 && away < least) [best, least] = [other, away];
    });
    return best;
  }

  function focus(index) {
    for (const element of map.elements) element.tabIndex = -1;
    map.elements[index].tabIndex = 0;
    map.elements[index].focus();
  }

  const indexOf = (event) => {
    const element = event.target.closest(".point");
    return element ? Number(element.dataset.index) : -1;
  };
  layerOfPoints.addEventListener("pointerover", (event) => { if (indexOf(event) >= 0) show(indexOf(event)); });
  layerOfPoints.addEventListener("pointerout", () => {
    const focused = document.activeElement.closest?.(".point");
    if (focused) show(Number(focused.dataset.index));
    else hide();
  });
  layerOfPoints.addEventListener("focusin", (event) => { if (indexOf(event) >= 0) show(indexOf(event)); });
  layerOfPoints.addEventListener("focusout", hide);
  layerOfPoints.addEventListener("click", (event) => {
    const index = indexOf(event);
    if (index >= 0) { focus(index); play(index); }
  });
  layerOfPoints.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
    const index = indexOf(event);
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      play(index);
    } else if (event.key in steps) {
      event.preventDefault();
      const next = neighbour(index, ...steps[event.key]);
      if (next >= 0) focus(next);
    } else if (event.key === "Escape") hide();
  });
  layerSelect.addEventListener("change", draw);
  draw();
})();
