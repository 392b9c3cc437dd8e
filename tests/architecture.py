"""Who imports whom: the layers of both packages, and their drawing in the docs, made from the code.

    .venv/bin/python tests/architecture.py      writes docs/imports.svg

The layers are laid out as they are drawn, and the drawing is the rule: a module imports its own layer and those that
begin below it, in functions too. `tests/test_architecture.py` holds every module to it.
"""

import ast
import textwrap
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
DRAWING = ROOT / "docs/imports.svg"
STRANGERS = {
    "cluster": {"training", "torch", "transformers", "datasets"},
    "training": {"cluster", "submitit"},
}
"""What a package never imports: the front end starts in a fraction of a second, and the trainer knows no launcher."""


class Layer(NamedTuple):
    """Modules, and their place in the drawing: from which row to which, from which column of twelve to which."""

    name: str
    what: str
    rows: tuple[int, int]
    columns: tuple[int, int]
    modules: str
    leaves: str = ""
    """Modules that know nothing of the house but its errors."""

    def is_above(self, other: "Layer") -> bool:
        return self.rows[1] <= other.rows[0]


WIDE = (0, 12)
CLUSTER = [
    Layer(
        "commands",
        "what is typed, and what begins a batch body",
        (0, 1),
        WIDE,
        "__init__ __main__ submit request sbatch here preparation sweep ranking launch doctor explain status logs "
        "attach cancel resubmit run templates bench completion submitted element",
    ),
    Layer(
        "over runs",
        "which runs there are, what they do",
        (1, 2),
        (0, 7),
        "runs run_state jobs stop progress stacks checks wait",
    ),
    Layer(
        "the launcher's side",
        "from the grant to mpirun's end",
        (1, 3),
        (7, 12),
        "attempt granted rendezvous stage_env supervise requeue notice last_report",
        "watchdog",
    ),
    Layer(
        "the rank's side",
        "beside each program",
        (2, 4),
        (0, 4),
        "rank watch compile_cache",
        "program_main",
    ),
    Layer(
        "the request",
        "options and files, read and checked",
        (3, 4),
        (4, 12),
        "options config_file command plan request_file sweep_file",
        "keywords grid",
    ),
    Layer(
        "records and verdict",
        "the run directory, and what is concluded from it",
        (4, 5),
        WIDE,
        "rundir lock run_file records own_job decide verdict repeated sequel mpirun_words error_lines",
        "events blame goodput",
    ),
    Layer(
        "the allocation",
        "who runs where, in Slurm's words and mpirun's",
        (5, 6),
        WIDE,
        "allocation slurm hostfile mpirun environment",
        "nodelist",
    ),
    Layer(
        "ground",
        "what everybody stands on",
        (6, 7),
        WIDE,
        "errors channel growing_logs trainer",
        "machine signals program private secret preflight node_local terminal toml_file",
    ),
]
TRAINING = [
    Layer("commands", "", (0, 1), (0, 8), "__init__ train_llm check check_hosts export generate evaluate_model"),
    Layer("beginning and end", "of a run", (1, 2), (0, 8), "start assemble prepare sample summary trained model_card"),
    Layer("report", "reads runs", (0, 2), (8, 10), "report.*"),
    Layer("bench", "times steps", (0, 2), (10, 12), "bench.*"),
    Layer(
        "outlets",
        "where steps are told",
        (2, 3),
        WIDE,
        "run_log metrics trackers display",
        "live_report",
    ),
    Layer("steps", "one after another", (3, 4), WIDE, "loop passes evaluate", "divergence schedule rank_times"),
    Layer(
        "data",
        "from a name to batches",
        (4, 5),
        WIDE,
        "source documents tokenise tokens loader",
        "tables proof sampler",
    ),
    Layer(
        "checkpoints",
        "whole or not there",
        (5, 6),
        WIDE,
        "saver snapshot publish retention checkpoint incarnation random_state",
        "disk_space",
    ),
    Layer(
        "model",
        "what learns, and how its loss is computed",
        (6, 7),
        WIDE,
        "model demo strategy batch_size token_loss gpt2_loss",
        "packing attention gpt2_kernels optimizer flops",
    ),
    Layer(
        "ranks",
        "the processes, their place and their group",
        (7, 8),
        WIDE,
        "process_group joining store preflight host network device command stop",
        "ranks heartbeat start_clock imports",
    ),
    Layer(
        "ground",
        "what everybody stands on",
        (8, 9),
        WIDE,
        "errors config run_directory",
        "presets interval prompt hub manifest whole_file revision teardown terminal",
    ),
]
PACKAGES = {"cluster": CLUSTER, "training": TRAINING}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    """As its own package names it; a subpackage is one module of many files, `report.*`."""
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return parts[0] + ".*" if len(parts) > 1 else parts[0]


def imported_names(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, `from a import b` as `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(package: str, dotted: str) -> str:
    """The module that `package.module.name` is of; `__init__` where the package itself has the name."""
    name = dotted.split(".")[1] if "." in dotted else "__init__"
    if (ROOT / package / name).is_dir():
        return f"{name}.*"
    return name if (ROOT / package / f"{name}.py").exists() else "__init__"


def layer_of(package: str) -> dict[str, Layer]:
    """The layer of each module."""
    return {name: layer for layer in PACKAGES[package] for name in f"{layer.modules} {layer.leaves}".split()}


def why_not(package: str, importer: str, dotted: str) -> str | None:
    """Why this module must not import that name; None where it may."""
    top = dotted.partition(".")[0]
    if top in STRANGERS[package]:
        return f"{package} never imports {top}"
    if top != package:
        return None
    imported = module_of(package, dotted)
    of = layer_of(package)
    if strays := [name for name in (importer, imported) if name not in of]:
        return f"{strays[0]} stands in no layer of tests/architecture.py"
    upper, lower = of[importer], of[imported]
    if importer in upper.leaves.split() and imported not in (importer, "errors"):
        return f"{importer} is a leaf, and imports {imported}"
    if upper != lower and not upper.is_above(lower):
        return f"{importer} ({upper.name}) imports {imported} ({lower.name}), which is not below it"
    return None


def arrows(package: str) -> set[tuple[Layer, Layer]]:
    """From layer to layer, as the code has them."""
    of = layer_of(package)
    pairs = {
        (of[module_name(path)], of[module_of(package, dotted)])
        for path in modules(package)
        for dotted in imported_names(path)
        if dotted.partition(".")[0] == package
    }
    return {(upper, lower) for upper, lower in pairs if upper != lower}


def shortest(pairs: set[tuple[Layer, Layer]]) -> list[tuple[Layer, Layer]]:
    """Those arrows that no way over other layers replaces."""

    def reached(start: Layer, without: tuple[Layer, Layer]) -> set[Layer]:
        found: set[Layer] = set()
        ahead = [start]
        while ahead:
            here = ahead.pop()
            further = {lower for upper, lower in pairs - {without} if upper == here} - found
            found |= further
            ahead += further
        return found

    return sorted(pair for pair in pairs if pair[1] not in reached(pair[0], pair))


# ── the drawing ───────────────────────────────────────────────────────────────────────────────────

WIDTH, MARGIN, GAP, LINE, LETTER = 760, 20, 26, 16, 6.7
WALL = "no import crosses this line in either direction"
HEAD = (
    '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0 8 4 0 8z"/></marker>'
)
STYLE = """\
  .page { fill: #ffffff; stroke: #d0d7de }
  .box { fill: #f6f8fa; stroke: #8c959f }
  text { fill: #1f2328; font: 12px ui-sans-serif, system-ui, sans-serif }
  .package { font-size: 15px; font-weight: 600 }
  .name { font-weight: 600 }
  .soft { fill: #59636e }
  .module, .leaf { font: 11px ui-monospace, Menlo, Consolas, monospace }
  .leaf { fill: #1a7f37 }
  line { stroke: #0969da; stroke-width: 1.5 }
  .wall { stroke: #cf222e; stroke-dasharray: 6 4 }
  #head path { fill: #0969da }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #3d444d }
    .box { fill: #151b23; stroke: #656c76 }
    text { fill: #f0f6fc }
    .soft { fill: #9198a1 }
    .leaf { fill: #3fb950 }
    line { stroke: #4493f8 }
    .wall { stroke: #f85149 }
    #head path { fill: #4493f8 }
  }"""


def left(layer: Layer) -> float:
    return MARGIN + layer.columns[0] * (WIDTH - 2 * MARGIN + GAP) / 12


def right(layer: Layer) -> float:
    return MARGIN + layer.columns[1] * (WIDTH - 2 * MARGIN + GAP) / 12 - GAP


def lines_of(layer: Layer) -> list[str]:
    """The module names, the leaves last, in lines that fit the box."""
    letters = int((right(layer) - left(layer) - 20) / LETTER)
    return textwrap.wrap(f"{layer.modules} {layer.leaves}", letters, break_on_hyphens=False)


def height_of(layer: Layer) -> int:
    return 18 + LINE * (len(heading(layer)) + len(lines_of(layer)))


def heading(layer: Layer) -> list[str]:
    """Its name and what it is, on one line where that fits."""
    both = f"{layer.name} {layer.what}"
    return (
        [layer.name]
        if not layer.what or len(both) * LETTER < right(layer) - left(layer) - 20
        else [layer.name, layer.what]
    )


def tops_of(layers: Sequence[Layer], top: int) -> list[int]:
    """Where each row begins, and where the last one ends."""
    tops = [top]
    for row in range(max(layer.rows[1] for layer in layers)):
        ends = [tops[layer.rows[0]] + height_of(layer) for layer in layers if layer.rows[1] == row + 1]
        tops.append(max(ends) + GAP)
    return tops


def draw_package(package: str, top: int) -> tuple[list[str], int]:
    """Its boxes and arrows below `top`, and where they end."""
    layers = PACKAGES[package]
    tops = tops_of(layers, top + 30)
    drawn = [f'<text class="package" x="{MARGIN}" y="{top + 16}">{package}</text>']
    for layer in layers:
        drawn += draw_box(layer, tops[layer.rows[0]], tops[layer.rows[1]] - GAP)
    passing = 0
    for upper, lower in shortest(arrows(package)):
        x = (max(left(upper), left(lower)) + min(right(upper), right(lower))) / 2
        if any(upper.rows[1] <= layer.rows[0] < lower.rows[0] and left(layer) < x < right(layer) for layer in layers):
            passing += 1  # over other boxes, where they have no text
            x = min(right(upper), right(lower)) - 16 * passing
        begin, end = tops[upper.rows[1]] - GAP, tops[lower.rows[0]]
        drawn.append(f'<line x1="{x:.0f}" y1="{begin}" x2="{x:.0f}" y2="{end - 2}" marker-end="url(#head)"/>')
    return drawn, tops[-1]


def draw_box(layer: Layer, top: int, bottom: int) -> Iterator[str]:
    x, width = left(layer), right(layer) - left(layer)
    yield f'<rect class="box" x="{x:.0f}" y="{top}" width="{width:.0f}" height="{bottom - top}" rx="6"/>'
    x += 10
    y = top + 6 + LINE
    soft = f'<tspan class="soft">{escape(layer.what)}</tspan>' if layer.what else ""
    if len(heading(layer)) == 1:
        yield f'<text x="{x:.0f}" y="{y}"><tspan class="name">{escape(layer.name)}</tspan>  {soft}</text>'
    else:
        yield f'<text class="name" x="{x:.0f}" y="{y}">{escape(layer.name)}</text>'
        y += LINE
        yield f'<text x="{x:.0f}" y="{y}">{soft}</text>'
    for line in lines_of(layer):
        y += LINE
        words = (
            f'<tspan class="{"leaf" if word in layer.leaves.split() else "module"}">{word}</tspan>'
            for word in line.split()
        )
        yield f'<text class="module" x="{x:.0f}" y="{y}">{" ".join(words)}</text>'


def drawing() -> str:
    """The whole of it as SVG, light and dark."""
    upper, wall = draw_package("cluster", MARGIN)
    lower, end = draw_package("training", wall + 20)
    note = "An arrow is an import; one that a way over other boxes replaces is left out."
    leaves = '<tspan class="leaf">Leaves</tspan> import nothing but errors.'
    words = [
        f'<line class="wall" x1="{MARGIN}" y1="{wall}" x2="{WIDTH - MARGIN}" y2="{wall}"/>',
        f'<text class="soft" x="{WIDTH - MARGIN}" y="{wall + 18}" text-anchor="end">{WALL}</text>',
        f'<text class="soft" x="{MARGIN}" y="{end - 2}">{note} {leaves}</text>',
    ]
    page = f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{end + 17}" rx="8"/>'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {end + 18}" role="img">',
            "<title>Who imports whom in cluster and training</title>",
            f"<style>\n{STYLE}\n</style>",
            f"<defs>{HEAD}</defs>",
            *(page, *upper, *lower, *words),
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    DRAWING.write_text(drawing())
