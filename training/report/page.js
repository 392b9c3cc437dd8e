const drawn = JSON.parse(document.getElementById("drawn").textContent);
const themes = JSON.parse(document.getElementById("themes").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const range = document.getElementById("steps");
const views = new Map();

/** The specification of a figure as the page's controls have it now. */
function asked(plot) {
  const spec = structuredClone(drawn[plot.dataset.figure]);
  const from = range.from.valueAsNumber, to = range.to.valueAsNumber;
  const box = document.querySelector(`[data-log="${plot.dataset.figure}"]`);
  for (const { encoding } of spec.layer ?? [spec]) {
    if ("byStep" in plot.dataset && encoding.x) {
      if (from < to) encoding.x.scale.domain = [from, to];
      else if (!isNaN(from)) encoding.x.scale.domainMin = from;
      else if (!isNaN(to)) encoding.x.scale.domainMax = to;
    }
    if (box && encoding.y) encoding.y.scale = box.checked ? { type: "log" } : { zero: false };
  }
  if (box?.checked) spec.transform = [{ filter: "!isValid(datum.y) || datum.y > 0" }];
  return spec;
}

async function draw(plot) {
  const theme = dark.matches ? "dark" : "light";
  const config = structuredClone(themes[theme]);
  if (plot.clientWidth < 480) config.legend.columns = 3;
  views.get(plot)?.finalize();
  const options = { mode: "vega-lite", actions: false, renderer: "canvas", config, tooltip: { theme } };
  views.set(plot, await vegaEmbed(plot, asked(plot), options));
}

const plots = [...document.querySelectorAll("[data-figure]")];
const drawAll = (which) => Promise.all(which.map(draw));
const drawBySteps = () => drawAll(plots.filter((plot) => "byStep" in plot.dataset));

/** Arrow keys read the values of a plot one after the other. */
function read(event) {
  const plot = event.currentTarget;
  const spec = drawn[plot.dataset.figure];
  const told = [spec, ...(spec.layer ?? [])].filter((layer) => layer.encoding?.tooltip);
  const values = told.flatMap((layer) => (layer.data ?? spec.data).values.map((value) => [layer.encoding.tooltip, value]));
  const at = Number(plot.dataset.at ?? -1);
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: values.length - 1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  plot.dataset.at = Math.max(0, Math.min(next, values.length - 1));
  const [tooltip, value] = values[plot.dataset.at];
  const words = tooltip.map(({ field, title, type }) =>
    `${title}: ${type === "temporal" ? new Date(value[field]).toISOString() : value[field]}`);
  plot.parentElement.querySelector(".reading").textContent = words.join(" · ");
}

for (const plot of plots) plot.addEventListener("keydown", read);
for (const box of document.querySelectorAll("[data-log]"))
  box.addEventListener("change", () => draw(document.querySelector(`[data-figure="${box.dataset.log}"]`)));
range.addEventListener("change", drawBySteps);
range.addEventListener("submit", (event) => event.preventDefault());
range.addEventListener("reset", () => setTimeout(drawBySteps));
dark.addEventListener("change", () => drawAll(plots));
drawAll(plots).then(() => { document.documentElement.dataset.drawn = "yes"; });
