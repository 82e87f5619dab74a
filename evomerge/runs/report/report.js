"use strict";
// Draws the figures with Vega-Lite in the page's colours, again when these change, and copies texts.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const said = document.getElementById("said");
  let printing = false;

  function theme() {
    const night = dark.matches && !printing;
    const ink = night ? "#e6e8ee" : "#1f2430", soft = night ? "#a3a9b8" : "#5b6272", line = night ? "#343945" : "#dfe2e8";
    const middle = night ? "#2b303b" : "#f4f4f2";
    return {
      background: "transparent",
      font: getComputedStyle(document.body).fontFamily,
      view: {stroke: null},
      axis: {labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line,
             titleFontWeight: "normal", labelFontSize: 12, titleFontSize: 12, labelLimit: 140,
             labelOverlap: true, labelSeparation: 10},
      legend: {labelColor: ink, titleColor: soft, labelFontSize: 12, labelLimit: 200, orient: "top", title: null,
               columns: window.innerWidth < 640 ? 2 : 4},
      title: {color: ink, anchor: "start", fontSize: 13, fontWeight: "normal"},
      text: {color: ink},
      mark: {color: night ? "#7db3ef" : "#2f6fbb"},
      range: {
        category: night
          ? ["#7db3ef", "#f0a06c", "#7fce9f", "#c79be6", "#e3c668", "#ec8fac", "#7fd3df", "#b5b5bd"]
          : ["#2f6fbb", "#d1652a", "#3a8f5c", "#8a56b0", "#b8942b", "#c14b6e", "#3b9aa8", "#77777f"],
        diverging: night
          ? ["#e08a52", "#8a5a3c", middle, "#3f6f9c", "#7db3ef"]
          : ["#b3541e", "#f0c9a8", middle, "#a9cbe6", "#1f5f9e"],
        heatmap: night ? ["#262b35", "#3f6f9c", "#9ccaf6"] : ["#eef3f8", "#9cc3e0", "#1f5f9e"],
        ramp: night ? ["#262b35", "#3f6f9c", "#9ccaf6"] : ["#eef3f8", "#9cc3e0", "#1f5f9e"],
      },
    };
  }

  function say(text) {
    said.textContent = text;
    window.setTimeout(() => { said.textContent = ""; }, 2500);
  }

  async function copy(text, what) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {  // pages opened as files may have no clipboard
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    say(`${what} copied`);
  }

  async function draw(figure) {
    const place = figure.querySelector(".plot"), specs = data.figures[figure.dataset.figure];
    const chosen = figure.querySelector(".views input:checked");
    const shown = figure.classList.contains("panels") ? specs : [specs[chosen ? Number(chosen.value) : 0]];
    place.replaceChildren();
    for (const spec of shown) {
      const box = document.createElement("div");
      place.append(box);
      const result = await vegaEmbed(box, spec, {
        mode: "vega-lite", renderer: "svg", actions: false, ast: true, config: theme(), tooltip: {theme: "custom"},
      });
      box.querySelector("svg").setAttribute("aria-hidden", "true");  // its box has the description
      result.view.addEventListener("click", (event, item) => {
        const number = item && item.datum && item.datum.number;
        if (number in data.recipes) copy(data.recipes[number], `recipe ${number}`);
      });
    }
    figure.dataset.drawn = "yes";
  }

  const drawings = [...document.querySelectorAll("figure.drawing")];
  let turn = Promise.resolve();
  const drawAll = () => { turn = turn.then(async () => { for (const figure of drawings) await draw(figure); }); return turn; };

  for (const figure of drawings) {
    for (const input of figure.querySelectorAll(".views input")) input.addEventListener("change", () => draw(figure));
  }
  dark.addEventListener("change", drawAll);
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; drawAll(); } });
  window.addEventListener("beforeprint", () => {
    printing = true;
    for (const details of document.querySelectorAll("details")) details.open = true;
    drawAll();
  });
  window.addEventListener("afterprint", () => { printing = false; drawAll(); });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    const {text, copies, recipe} = button.dataset;
    if (recipe !== undefined) copy(data.recipes[recipe], `recipe ${recipe}`);
    else copy(copies ? document.getElementById(copies).textContent : text, "text");
  });

  drawAll().then(() => { document.documentElement.dataset.ready = "yes"; });
})();
