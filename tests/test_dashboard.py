"""The dashboard in a real JupyterLab in a real browser: one JupyterLab, one kernel and one page for all tests."""
import json
import math
import shutil
import threading
import time
from pathlib import Path

import pytest
from browser import ARTEFACTS, kernel_of, needs_browser, run_all
from conftest import ROOT

from nexuslab.config import Config
from nexuslab.dashboard import SCALE_JS, TICKS_JS
from nexuslab.run import Record, Run, find_runs

pytestmark = [needs_browser, pytest.mark.xdist_group("browser")]
SCALARS = ("train/loss", "val/loss", "train/learning_rate", "train/grad_norm")


def wait_for(condition, what: str, seconds: float = 60):
    """Wait until a condition holds; returns its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds} s for {what}")


class Desk:
    """An open dashboard: its project, its page and its kernel."""

    def __init__(self, home: Path, page, kernel):
        self.home, self.page, self.kernel, self.root = home, page, kernel, home

    def open(self, root: Path) -> None:
        """Another project, with nothing ticked."""
        self.root = root
        code = f"from pathlib import Path\ndashboard.root = Path({str(root)!r})\ndashboard.table.selected = []\n"
        code += "dashboard.axis.value = 'step'\ndashboard.looks = type(dashboard.looks)()\ndashboard.refresh_table()\n"
        self.kernel(code + "dashboard.tick()")
        self.page.wait_for_function("() => !document.querySelector('.nexuslab-chart')")

    def run(self, name: str, rows: list[dict], **changes) -> Run:
        """A run directory with these rows."""
        run = Run.create(Config(system="bench", name=name, **changes), self.root)
        told = [{"step": i, "epoch": i / 100, "time": 1e9 + i, "attempt": 0} | row for i, row in enumerate(rows, 1)]
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
        return run

    def tick(self, *runs: Run, on: bool = True) -> None:
        """Tick runs in the table."""
        for run in runs:
            box = self.page.locator("tr[data-run]").filter(has_text=run.path.name).locator("input")
            box.wait_for(timeout=10_000)
            box.set_checked(on)

    def chart(self, title: str = "train/loss"):
        """The chart of a scalar."""
        found = self.page.locator(f".nexuslab-chart[data-title='{title}']")
        found.wait_for(timeout=10_000)
        return found

    def drawn(self, title: str = "train/loss") -> dict:
        """What a chart shows: points by run, what stands at its axes and beside its marks."""
        return self.chart(title).evaluate("""c => ({
            ...c.drawn, looks: Object.fromEntries([...c.traces].map(([id, t]) => [id, t.look])),
            points: Object.fromEntries([...c.traces].map(([id, t]) => [id, [t.x, t.y].map(a => [...a.slice(0, t.n)])])),
        })""")

    def settled(self, condition, what: str) -> dict:
        """What the chart of the training loss shows, once a condition on that holds."""
        return wait_for(lambda: (seen := self.drawn()) and condition(seen) and seen, what, 10)

    def coloured(self, count: int, what: str) -> dict:
        """The look of each curve of the training loss, once so many are drawn (a trace gets its look then)."""
        return self.settled(lambda s: len(s["looks"]) == count and None not in s["looks"].values(), what)["looks"]

    def hint(self, text: str) -> None:
        """Wait until the dashboard says something."""
        self.page.locator(".widget-html", has_text=text).first.wait_for(timeout=10_000)


@pytest.fixture(scope="module")
def desk(lab):
    home, page = lab.home, lab.page
    shutil.copy(ROOT / "nbs" / "09_dashboard.ipynb", lab.folder)
    page.address = lab.address
    page.outside.clear(), page.errors.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEXUSLAB_HOME", str(home))
        page.goto(lab.address("09_dashboard.ipynb"))
        run_all(page)
        page.wait_for_selector(".nexuslab-table", timeout=90_000)
        with kernel_of(home) as kernel:
            yield Desk(home, page, kernel)
        assert not page.outside, page.outside
        mistakes = [e for e in page.errors if "nexuslab" in e or "anywidget" in e or "TypeError" in e]
        assert not mistakes, mistakes


@pytest.fixture
def board(desk, tmp_path):
    """The dashboard with an empty project."""
    desk.open(tmp_path)
    yield desk
    assert desk.kernel("", "dashboard.task.done()") is False, "the loop ended"
    desk.open(desk.home)


def loss(step: int) -> float:
    return 1 / step


def record_of(run: Run) -> dict[str, dict[int, float]]:
    """The record, read by other means than the dashboard's: scalar -> step -> value."""
    found: dict[str, dict[int, float]] = {}
    for line in (run.path / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name in row.keys() & set(SCALARS):
            found.setdefault(name, {})[row["step"]] = row[name]
    return found


CLICKS = """async ([box, count]) => {
    let wrong = 0;
    for (let i = 1; i <= count; i++) {
        document.querySelector(box).click();
        await new Promise(r => setTimeout(r, 3));
        if (i % 10) continue;
        for (const chart of document.querySelectorAll(".nexuslab-chart")) for (const t of chart.traces.values()) {
            for (let k = 0; k < t.n; k++) wrong += (k > 0 && !(t.x[k] > t.x[k - 1])) || t.y[k] !== 1 / t.x[k];
        }
    }
    return wrong;
}"""


def test_curves_are_the_record_whatever_is_clicked(board):
    """1,000 ticks and unticks while a run writes: no point that is not in the record, no backward step."""
    steady, moving = (board.run(name, [dict.fromkeys(SCALARS, loss(i)) for i in range(1, 1601)]) for name in "ab")
    board.tick(steady)
    done, record = threading.Event(), Record(moving.path / "metrics.jsonl")

    def write():
        step = 1600
        while not done.wait(0.004):
            step += 1
            record.write(step, step / 100, dict.fromkeys(SCALARS, loss(step)))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        board.tick(moving)
        assert board.page.evaluate(CLICKS, [f"tr[data-run='{moving.path.name}'] input", 1000]) == 0
    finally:
        done.set()
        writer.join()
        record.close()
    truth = {f"bench/{run.path.name}": record_of(run) for run in (steady, moving)}
    last = max(truth[f"bench/{moving.path.name}"]["train/loss"])
    assert last > 2000
    for scalar in SCALARS:
        wait_for(lambda: board.drawn(scalar)["x1"] == last, f"the last row in {scalar}")
    held = "{k: {s: [c.on('step').tolist(), c.values.tolist()] for s, c in f.curves.items()}"
    kept = board.kernel("", held + " for k, f in dashboard.followers.items()}")
    assert kept.keys() == truth.keys()
    for key, scalar in [(key, scalar) for key in truth for scalar in SCALARS]:
        steps, values = kept[key][scalar]
        assert steps == sorted(truth[key][scalar]) and dict(zip(steps, values)) == truth[key][scalar]
    for scalar in SCALARS:
        for key, (steps, values) in board.drawn(scalar)["points"].items():
            assert len(steps) > 1000 and all(a < b for a, b in zip(steps, steps[1:]))
            assert not set(zip(steps, values)) - set(truth[key][scalar].items())


def test_the_time_axis_begins_with_each_run(board):
    """Runs of different days lie on each other, and a resumed run goes on without its pause."""
    start = {"event": "start", "step": 0}
    first = board.run("first", [start, *({"train/loss": 1.0, "time": 1e9 + 60 * i} for i in range(1, 121))])
    rows = [start | {"time": 1.7e9}, *({"train/loss": 2.0, "time": 1.7e9 + 60 * i, "step": i} for i in range(1, 61))]
    rows += [start | {"step": 50, "time": 1.8e9}]
    rows += [{"train/loss": 3.0, "time": 1.8e9 + 60 * i, "step": 50 + i} for i in range(1, 71)]
    second = board.run("second", rows)
    board.tick(first, second)
    board.kernel("dashboard.axis.value = 'time'")
    seen = board.settled(lambda s: s.get("sign") == "min" and len(s["points"]) == 2, "minutes")
    minutes = {key.split("-")[2]: [x / 60 for x in points[0]] for key, points in seen["points"].items()}
    assert minutes["second"] == list(range(1, 121))
    assert minutes["first"][0] < 3 and minutes["first"][-1] - minutes["first"][0] == 119
    assert 0 <= seen["x0"] and seen["x1"] == 7200
    board.page.screenshot(path=ARTEFACTS / "dashboard-time.png")


AXES = "(() => {" + TICKS_JS + SCALE_JS + """
    let seed = 1, bad = [];
    const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
    const trace = ys => [{n: ys.length, x: ys.map((_, i) => i), y: ys}];
    const cases = [[0.6931, 0.6932], [1, 1], [0.9, 1.1], [3e-9, 2e9], [5e-324, 1.7e308], [1, 1 + 1e-15]];
    cases.push([1e300, 2e300], [0, 1e-3], [-1, 1e9]);
    for (let i = 0; i < 3000; i++) {
        const y = Math.pow(10, 40 * random() - 20);
        cases.push([y, y * (1 + Math.pow(10, 12 * random() - 9))]);
    }
    for (const ys of cases) for (const log of [true, false]) {
        const e = extent(trace(ys), null, log), below = log && ys[0] <= 0, Y = height(e, 22, 200, STRIP);
        const found = e.log ? logTicks(e.y0, e.y1) : ticks(e.y0, e.y1, 5), said = labels(found);
        const some = said.length >= 2 && said.length <= 12 && new Set(said).size === said.length;
        const short = said.every(text => text.length <= 16);
        const inside = [...found, ...ys].every(v => Y(v) >= 21 && Y(v) <= 223);
        if (!some || !short || !inside || e.log !== log || e.below !== below) bad.push([ys, log, said]);
    }
    return bad.slice(0, 3);
})()"""


def test_every_axis_has_labels_and_shows_every_value(board):
    """At least two labels that tell ticks apart, on any range; zeros and negative values below a logarithmic axis."""
    assert board.page.evaluate(AXES) == []
    run = board.run("zeros", [{"train/loss": max(0.0, math.sin(i / 10)), "val/loss": -float(i)} for i in range(1, 200)])
    board.tick(run)
    seen = board.settled(lambda s: s.get("below"), "the strip")
    assert seen["labels"][0] == "≤ 0" and len(seen["labels"]) >= 3
    assert 0.0 in seen["points"][f"bench/{run.path.name}"][1]
    seen = board.drawn("val/loss")
    assert not seen["log"] and seen["y0"] <= -199 and len(seen["labels"]) >= 2
    board.page.screenshot(path=ARTEFACTS / "dashboard-zeros.png")


def eventually(board, look, expected, seconds: float = 20):
    """What is seen in the page, once it is what is expected, or at the end of the time."""
    end = time.time() + seconds
    while (seen := look()) != expected and time.time() < end:
        board.page.wait_for_timeout(100)
    return seen


def test_a_colour_stays_with_its_run(board):
    """Unticking one of twelve runs changes no other's look; table, legend and curve agree."""
    runs = [board.run(f"r{k}", [{"train/loss": (1 + k) / i} for i in range(1, 50)]) for k in range(12)]
    names = [f"bench/{run.path.name}" for run in runs]
    board.tick(*runs)
    looks = board.coloured(12, "twelve curves")
    assert len(set(looks.values())) == 12
    board.page.screenshot(path=ARTEFACTS / "dashboard-twelve.png")
    board.tick(runs[0], runs[5], on=False)
    fewer = board.coloured(10, "ten curves")
    assert fewer == {name: looks[name] for name in names if name not in (names[0], names[5])}
    expected = {name: [fewer[name]] if name in fewer else [] for name in names}
    swatches = """() => Object.fromEntries([...document.querySelectorAll('tr[data-run]')].map(
        row => ["bench/" + row.dataset.run, [...row.querySelectorAll('svg')].map(s => +s.dataset.look)]))"""
    assert eventually(board, lambda: board.page.evaluate(swatches), expected) == expected
    legend = "c => [...c.querySelectorAll('.nexuslab-legend svg')].map(s => +s.dataset.look)"
    drawn = sorted(fewer.values())
    assert eventually(board, lambda: sorted(board.chart().evaluate(legend)), drawn) == drawn
    board.tick(runs[0])
    again = board.coloured(11, "eleven curves")
    assert again == fewer | {names[0]: looks[names[0]]}


def test_marks_follow_the_record(board):
    """The best mark moves with the record, and many overfit events share a label."""
    run = board.run("marked", [{"train/loss": 1 / i} for i in range(1, 400)])
    record = Record(run.path / "metrics.jsonl")
    for step in (100, 398):
        record.write(step, 1, {"event": "best", "value": 1.0})
    for step in range(130, 400, 2):
        record.write(step, 1, {"event": "overfit", "train": 1.0, "val": 2.0})
    board.tick(run)
    place = lambda seen, text: next((m["left"] for m in seen.get("marks", []) if m["text"].startswith(text)), None)
    before = place(board.settled(lambda s: place(s, "best"), "the mark"), "best")
    record.write(401, 2, {"train/loss": 0.001})
    record.write(500, 2, {"event": "best", "value": 0.5})
    record.write(500, 2, {"train/loss": 0.001})  # last: who has seen this row has seen the event
    record.close()
    seen = board.settled(lambda s: s["x1"] == 500, "the new row")
    assert sorted(m["text"] for m in seen["marks"]) == ["best", "overfit × 135"]
    assert place(seen, "best") > before - 20
    boxes = [(m["row"], m["left"], m["left"] + m["width"]) for m in seen["marks"]]
    assert boxes and not [1 for a in boxes for b in boxes if a != b and a[0] == b[0] and a[1] < b[2] and b[1] < a[2]]
    assert board.kernel("", "[m['x'] for m in dashboard.charts[0].marks if m['label'] == 'best']") == [500.0]
    board.page.screenshot(path=ARTEFACTS / "dashboard-marks.png")


def test_nothing_to_see_is_said(board):
    """An empty project, nothing ticked, no rows yet, a part of the axis without points: a sentence, and no axes."""
    board.hint("No run in")
    assert "start train" in board.page.inner_text("body") and not board.page.locator(".nexuslab-chart").count()
    run = board.run("new", [])
    board.hint("Tick a run in the table")
    board.tick(run)
    board.hint("No figures yet")
    with open(run.path / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps({"step": s, "epoch": 0, "time": s, "train/loss": 1}) + "\n" for s in (10, 20, 500))
    board.hint("val/loss: no row of the ticked runs has it so far")
    assert len(board.settled(lambda s: "points" in s and s.get("labels"), "the curve")["points"]) == 1
    box = board.chart().locator("canvas").bounding_box()
    board.page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 100)
    board.page.mouse.down()
    board.page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 100)
    board.page.mouse.up()
    seen = board.settled(lambda s: "sentence" in s, "the sentence")
    assert "no point in this part" in seen["sentence"] and "labels" not in seen
    board.chart().locator("canvas").dblclick(position={"x": 100, "y": 100})
    assert board.settled(lambda s: "labels" in s, "all again")["x1"] == 500
    board.tick(run, on=False)
    board.hint("Tick a run in the table")


HOSTILE = '<img src=x onerror="window.hacked=1">'


def test_a_strangers_run_shows_its_text(board):
    """Names and values of a stranger's run are text; none of it runs in the page."""
    for k in range(2):
        row = {"train/loss": 1.0, f"train/{HOSTILE}": 1.0, f"train/weighted_{HOSTILE}": 1.0}
        run = board.run("good", [row], seed=k)
        text = (run.path / "config.yaml").read_text() + f"\n{json.dumps(HOSTILE)}: {json.dumps(HOSTILE + str(k))}\n"
        (run.path / "config.yaml").write_text(text)
        with open(run.path / "metrics.jsonl", "a") as file:
            file.write('"no row"\n')
        run.path.rename(run.path.with_name(f"{run.path.name}-{HOSTILE.replace('/', '')}"))
    bad = board.root / "runs" / HOSTILE / HOSTILE
    bad.mkdir(parents=True)
    (bad / "config.yaml").write_text(f"{HOSTILE}: [")
    board.kernel("dashboard.stack.value = True")
    boxes = board.page.locator("tr[data-run] input")
    wait_for(lambda: boxes.count() == 3, "three rows")
    for k in range(3):
        boxes.nth(k).check()
    board.hint("are no rows")
    board.page.click(".jupyter-widget-Collapse-header:has-text('what differs')")
    board.page.click("button:has-text('stop')")
    board.hint("is created")
    board.page.locator("table td", has_text=HOSTILE + "1").wait_for(timeout=10_000)
    board.kernel("dashboard.stack.value = False")
    assert board.page.evaluate("() => window.hacked === undefined && !document.querySelector('img[src=x]')")


def test_damaged_runs_are_rows_and_others_go_on(board):
    """Five kinds of damage: each is a row that says so; an error while following is shown, and ends nothing."""
    damage = {"config.yaml": ("", "a: [", "preset: base"), "status.json": ("", '{"step": 3}')}
    for name, texts in damage.items():
        for text in texts:
            (board.run("bad", []).path / name).write_text(text)
    good, other = board.run("good", [{"train/loss": 1.0}] * 3), board.run("other", [{"train/loss": 1.0}] * 3)
    rows = board.page.locator("tr[data-status^=damaged]")
    wait_for(lambda: rows.count() == 5, "five damaged rows", 10)
    for k in range(5):
        rows.nth(k).locator("input").check()
    board.tick(good, other)
    board.settled(lambda s: len(s["points"]) == 2, "two curves")
    record, moved = other.path / "metrics.jsonl", other.path / "aside"
    record.rename(moved)
    record.mkdir()  # cannot be read as a file
    board.page.locator(".nexuslab-trouble", has_text=f"reading bench/{other.path.name}").wait_for(timeout=10_000)
    with open(good.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "epoch": 0, "time": 9, "train/loss": 2}\n')
    board.settled(lambda s: s["x1"] == 9, "the good run's news")
    record.rmdir()
    moved.rename(record)
    wait_for(lambda: board.page.locator(".nexuslab-trouble").inner_text() == "", "the error to go", 10)
    board.page.screenshot(path=ARTEFACTS / "dashboard-damaged.png")


def fill(page, **values) -> None:
    """Fill in the form."""
    for name, value in values.items():
        page.fill(f".widget-text:has(label:text-is('{name}')) input", value)


def fault(page, name: str) -> str:
    """What stands beside a field."""
    return page.locator(f".widget-vbox:has(> .widget-text label:text-is('{name}')) > .nexuslab-fault").inner_text()


def test_the_form_refuses_beside_the_field(desk):
    """What the command would refuse is told before a job starts; a job that dies tells its error."""
    page = desk.page
    desk.open(desk.home)
    page.click(".jupyter-widget-Collapse-header:has-text('start a job')")
    fill(page, system="toy_graphs", preset="smok", epochs="[", lr="quick", overrides="{model.hiden: 3}")
    page.click("button:has-text('start train')")
    told = {"preset": "smoke", "epochs": "YAML", "lr": "optim.lr", "overrides": "model.hidden"}
    wait_for(lambda: all(text in fault(page, name) for name, text in told.items()), "an answer beside each field", 20)
    assert fault(page, "system") == fault(page, "seed") == "" and not list(desk.home.glob("runs/.jobs/*"))
    page.screenshot(path=ARTEFACTS / "dashboard-form.png")
    ended = desk.run("done", [{"train/loss": 1.0}])
    ended.set_status(state="finished", step=1)
    desk.tick(ended)
    page.click("button:has-text('resume')")
    desk.hint("is finished, there is nothing to resume")
    stopped = desk.run("lost", [{"train/loss": 1.0}])
    stopped.set_status(state="stopped", step=1)  # and no checkpoint
    desk.tick(stopped)  # its row is there, so that none moves under the pointer
    desk.tick(ended, on=False)
    page.click("button:has-text('resume')")
    desk.hint("resuming (process")
    page.click("button:has-text('resume')")
    desk.hint("is being resumed already")
    page.locator(".widget-html", has_text="failed (exit status").wait_for(timeout=60_000)
    desk.tick(stopped, on=False)


def test_a_job_is_started_watched_and_stopped(desk):
    page, before = desk.page, len(find_runs(desk.home))
    desk.open(desk.home)
    if not page.is_visible("button:has-text('start train')"):
        page.click(".jupyter-widget-Collapse-header:has-text('start a job')")
    overrides = "{track.log_every: 5, checkpoint.eval_every: 20}"
    fill(page, system="toy_graphs", preset="smoke", epochs="3000", lr="", overrides=overrides)
    page.click("button:has-text('start train')")
    run = wait_for(lambda: len(find_runs(desk.home)) > before and find_runs(desk.home)[-1], "the run's directory")
    desk.tick(run)
    wait_for(lambda: Run(run.path).status["state"] == "running", "the training to begin")
    desk.settled(lambda s: s.get("x1", 0) > 5, "the first rows")
    last = desk.drawn()["x1"]
    desk.settled(lambda s: s["x1"] > last + 20, "more rows")
    page.screenshot(path=ARTEFACTS / "dashboard.png")
    page.click("button:has-text('stop')")
    wait_for(lambda: Run(run.path).status["state"] == "stopped", "the run to stop")
    page.wait_for_selector(f"tr[data-run='{run.path.name}'][data-status=stopped]", timeout=20_000)
    stopped = Run(run.path).status["step"]
    page.click("button:has-text('resume')")
    second = lambda status: status["attempt"] == 1 and status["step"] > stopped
    wait_for(lambda: second(Run(run.path).status), "the run to go on")
    Run(run.path).request_stop()
    wait_for(lambda: Run(run.path).status["state"] == "stopped", "the run to stop again")
    page.screenshot(path=ARTEFACTS / "dashboard-stopped.png")


def test_the_tour_shows_its_curve_while_it_trains(desk, lab):
    shutil.copy(ROOT / "nbs" / "00_tour.ipynb", desk.home / "notebooks")
    page, before = desk.page, len(find_runs(desk.home))
    lab.open("00_tour.ipynb")
    run_all(page)
    grown = "() => [...document.querySelectorAll('.nexuslab-chart')].some(c => +c.dataset.points > 3)"
    page.wait_for_function(grown, timeout=120_000)
    run = wait_for(lambda: len(find_runs(desk.home)) > before and find_runs(desk.home)[-1], "the run's directory")
    assert Run(run.path).status["state"] == "running"  # the curve moves while the kernel is busy training
    page.locator(".nexuslab-chart").first.scroll_into_view_if_needed()
    page.screenshot(path=ARTEFACTS / "tour.png")
    wait_for(lambda: Run(run.path).status["state"] == "finished", "the training to end", 180)
