"""The service broken for real, under load, and told by what its clients saw: capacity first, then the faults.

C is the highest of a few rates that is all answered, with a p99 of at most 100 ms. The faults meet SimpleCNN with a
photo, in an artifact that misbehaves for marked pictures; burst and drain meet SqueezeNet at 224 px, for whose C the
load generator is not the limit.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks import contenders, courses, marked, overload, plots
from benchmarks.command_line import FAULTS
from benchmarks.contenders import DARKROOM, README
from benchmarks.courses import by_status, told
from benchmarks.errors import BenchmarkError
from benchmarks.plan import Plan, Row
from benchmarks.results import Table, distinct, number, select
from benchmarks.scenarios import SCENARIOS
from benchmarks.servers import Contender
from benchmarks.trials import LONG_S, Ground
from benchmarks.workloads import expected, model_file, photo

HEAVY = "squeezenet1_0"
TIMEOUT_S = 10.0  # the deadline that the service is given; LitServe keeps its own
BESIDE = ("F1", "F3", "bad", "F11", "burst")  # what LitServe meets, too
HEAVIES = {"F11": ("SIGTERM, 20 in flight and 50 queued", overload.drain), "burst": ("burst of 10 C", overload.burst)}
TITLES = {name: title for name, (title, _) in (*SCENARIOS.items(), *HEAVIES.items())}
KILLS = ("kills", "kills_spare")
DRAWN = ("F1", "kills_spare", "F3", "F4", "F5", "F11", "burst")


def measure(plan: Plan) -> list[Row]:
    """Rows of capacity and of each scenario, ours first, then LitServe's."""
    ours = contenders.darkroom([*plan.flags, "--timeout-ms", f"{1000 * TIMEOUT_S:.0f}"])
    rows = met(plan, ours, TIMEOUT_S, plan.only or FAULTS)
    beside = [name for name in BESIDE if not plan.only or name in plan.only]
    return rows if plan.quick else rows + met(plan, README, LONG_S, beside)


def met(plan: Plan, contender: Contender, timeout_s: float, names: Sequence[str]) -> list[Row]:
    """What one contender's scenarios found; one that cannot be done leaves a row that says so."""
    rows: list[Row] = []
    body, _ = photo()
    for scenarios, made in ((SCENARIOS, marked.model_file), (HEAVIES, heavy)):
        wanted = [name for name in scenarios if name in names]
        if not wanted:
            continue
        model = made(plan.models)
        with closing(Ground(plan, contender, model, body, expected(model, body), timeout_s)) as ground:
            if scenarios is SCENARIOS:
                rows += overload.capacity(ground, ground.server())
            for name in wanted:
                try:
                    rows += scenarios[name][1](ground)
                except (BenchmarkError, OSError) as error:
                    said = str(error).splitlines()[-1]
                    rows.append({"scenario": name, "server": ground.name, "failed": True, "notes": [said]})
                    plan.say(f"{ground.name} {name}: {said}")
                    ground.close()
    return rows


def heavy(folder: Path) -> Path:
    return model_file(folder, HEAVY)


def happened(row: Row) -> str:
    """What was seen of the server from outside, in a few words."""
    found = list(row.get("notes", []))
    struck = row["marks"][0]["at"] if row.get("marks") else 0.0
    changes = [(at - struck, status) for at, status in row.get("health", []) if at > struck]
    found += [f"/health {status or 'silent'} after {at:.1f} s" for at, status in changes[:4]]
    found += [f"{name} {count:.0f}" for name, count in row.get("counters", {}).items() if count]
    if "exit_code" in row:
        ended = (
            f" after {row['ended_s'] - (struck if row['scenario'] != 'F11' else 0):.1f} s" if "ended_s" in row else ""
        )
        found.append(f"exit code {row['exit_code']}{ended}, {row['orphans']} orphans")
        found += ["port still held"] * row["port_held"]
    if (bad := row.get("groups", {}).get("bad", {})).get("requests"):
        answers = ", ".join(f"{count} x {status}" for status, count in bad["statuses"].items())
        found.append(f"marked: {answers or 'no answer'}")
    return "; ".join(found) or "-"


def tables(rows: Sequence[Row]) -> list[Table]:
    """Capacity, the fault table, kills, overload, and both servers side by side."""
    made = [capacities(rows), faults(rows)]
    made += [kills(select(rows, scenario=name), TITLES[name]) for name in KILLS if select(rows, scenario=name)]
    made += [found for found in (bad(rows), burst(rows), drain(rows), beside(rows)) if found.cells]
    return [table for table in made if table.cells]


def capacities(rows: Sequence[Row]) -> Table:
    """The rates that were tried."""
    cells = []
    for row in rows:
        if row["scenario"] in ("capacity", "burst capacity"):
            model = "SimpleCNN" if row["scenario"] == "capacity" else "SqueezeNet"
            numbers = map(number, (row["rate"], row["p50_ms"], row["p99_ms"], row["late_ms"], row["capacity"]))
            cells.append([row["server"], model, by_status(row), *numbers])
    columns = ("", "model", "answers", "offered a second", "p50 ms", "p99 ms", "sent late, ms (p99)", "C")
    return Table("Capacity: the highest rate with p99 of at most 100 ms and no refusal", columns, cells, texts=3)


def faults(rows: Sequence[Row]) -> Table:
    """One row a fault; of kills, the first."""
    cells = []
    for name in FAULTS:
        for row in select(rows, scenario=name, server=DARKROOM.name)[: 1 if name in KILLS else None]:
            cells.append([f"{name} {TITLES[name]}", happened(row), *counted(row)])
        cells += [[row["scenario"], happened(row), *counted(row)] for row in select(rows, scenario=f"{name} loading")]
    columns = ("", "what happened", "by status", "accepted", "answered", "lost", "wrong")
    more = ("s to first 200", "s to full rate", "s to usual p99")
    return Table("Faults at C/2", (*columns, *more), cells, texts=3)


def counted(row: Row) -> list[str]:
    """What clients saw; dashes where there was no load."""
    if "sent" not in row:
        return ["-"] * 8
    answered = row["accepted"] - row["lost"]
    seconds = [told(row.get(name)) for name in ("first_200_s", "full_rate_s", "normal_s")]
    return [
        by_status(row),
        *(f"{count:,}" for count in (row["accepted"], answered, row["lost"], row["wrong"])),
        *seconds,
    ]


def kills(rows: Sequence[Row], title: str) -> Table:
    """A row a kill, and all together: sums of counts, the longest of times."""
    done = [row for row in rows if "sent" in row]
    cells = [[f"{at}", happened(row), *counted(row)] for at, row in enumerate(rows, 1)]
    if done:
        counts = ("scheduled", "sent", "unread", "accepted", "lost", "wrong")
        total = {name: sum(row[name] for row in done) for name in counts}
        statuses = distinct(({"status": status} for row in done for status in row["statuses"]), "status")
        total["statuses"] = {status: sum(row["statuses"].get(status, 0) for row in done) for status in sorted(statuses)}
        for name in ("first_200_s", "full_rate_s", "normal_s"):
            found = [row[name] for row in done]
            total[name] = None if None in found else max(found)
        cells.append(["all; longest", "", *counted(total)])
    columns = ("kill", "what happened", "by status", "accepted", "answered", "lost", "wrong")
    more = ("s to first 200", "s to full rate", "s to usual p99")
    return Table(f"{title[0].upper()}{title[1:]}, at C/2", (*columns, *more), cells, texts=3)


def bad(rows: Sequence[Row]) -> Table:
    """Good and bad images apart."""
    cells = []
    for row in select(rows, scenario="bad"):
        if "groups" not in row:
            continue
        good, worse = row["groups"]["good"], row["groups"]["bad"]
        hurt = good["requests"] - good["right"]
        answers = ", ".join(f"{count} x {status}" for status, count in worse["statuses"].items())
        line = [row["server"], answers, good["requests"], hurt, worse["requests"], worse["statuses"].get("500", 0)]
        cells.append([*map(str, line), str(worse["lost"])])
    columns = ("", "answers to bad ones", "good", "of them hurt", "bad", "of them 500", "of them lost")
    return Table("30 % bad inputs at 0.7 C", columns, cells, texts=2)


def burst(rows: Sequence[Row]) -> Table:
    """A row a server."""
    cells = []
    for row in select(rows, scenario="burst"):
        if "burst" not in row:
            continue
        found = row["burst"]
        refusals = number(row["refused_ms"]) if row["refused_ms"] else "-"
        numbers = (row["accepted_ms"], row["steady_p99_ms"], row["burst_goodput"])
        after = [told(row[name]) for name in ("full_rate_s", "normal_s")]
        images = str(row["images"] or "-")
        cells.append(
            [row["server"], by_status(found), number(row["capacity"]), images, refusals, *map(number, numbers), *after]
        )
        cells[-1] += [str(row["lost"]), str(row["wrong"]), number(found["late_ms"])]
    columns = ("", "answers in the burst", "C", "--capacity (C x p99 at 0.7 C)", "refusals p99 ms", "accepted p99 ms")
    more = (
        "p99 at 0.7 C",
        "goodput / C",
        "s to full rate after it",
        "s to usual p99",
        "lost",
        "wrong",
        "sent late, ms",
    )
    return Table("10 C for 30 s on 0.5 C", (*columns, *more), cells, texts=2)


def drain(rows: Sequence[Row]) -> Table:
    """A row a server."""
    cells = []
    for row in select(rows, scenario="F11"):
        if "sent" in row:
            code = str(row.get("exit_code", "still there"))
            seconds = [told(row.get(name)) for name in ("last_s", "ended_s")]
            cells.append([row["server"], by_status(row), "; ".join(row["notes"]), str(row["lost"]), code, *seconds])
            cells[-1].append(str(row["orphans"]))
    columns = ("", "answers", "meanwhile", "lost", "exit code", "s to last answer", "s to exit", "orphans")
    return Table("SIGTERM with 70 requests under way", columns, cells, texts=3)


def beside(rows: Sequence[Row]) -> Table:
    """The same scenario, a column a server."""
    servers, cells = distinct(rows, "server"), []
    for name in BESIDE if len(servers) > 1 else ():
        line = [f"{name} {TITLES[name]}"]
        for server in servers:
            found = select(rows, scenario=name, server=server)
            line.append(summary(found[0]) if found else "-")
        cells.append(line)
    return Table("Side by side, each at shares of its own C", ("", *servers), cells, texts=1 + len(servers))


def summary(row: Row) -> str:
    """A scenario in a cell."""
    if "sent" not in row:
        return happened(row)
    good = row["groups"]["good"] if row["scenario"] == "bad" else {"requests": row["scheduled"], "right": right(row)}
    found = [f"{good['right']:,} of {good['requests']:,} right", f"{row['lost']:,} lost", f"{row['wrong']:,} wrong"]
    if row["scenario"] == "bad":
        found.append(f"{row['groups']['bad']['statuses'].get('500', 0):,} x 500 for bad ones")
    elif row["scenario"] == "burst":
        found += [f"goodput {row['burst_goodput']:.2f} C", f"accepted p99 {number(row['accepted_ms'])} ms"]
        found.append(f"usual p99 after {told(row['normal_s'])} s")
    elif row["scenario"] == "F11":
        found.append(f"exit code {row.get('exit_code', 'none')}, {row['orphans']} orphans")
    else:
        found.append(f"full rate after {told(row['full_rate_s'])} s")
    return ", ".join(found)


def right(row: Row) -> int:
    return int(row["statuses"].get("200", 0)) - int(row["wrong"])


def figure(rows: Sequence[Row]) -> Figure:
    """Latency by offered load, then the time lines with their faults marked."""
    swept = [(server, name) for server in distinct(rows, "server") for name in ("capacity", "burst capacity")]
    swept = [key for key in swept if len(select(rows, server=key[0], scenario=key[1])) > 1]
    marked_rows = [row for row in rows if row.get("marks")]
    lines = [
        row
        for server in distinct(rows, "server")
        for name in DRAWN
        for row in select(marked_rows, scenario=name, server=server)[:1]
    ]
    drawn, panels = plots.panels(max(1, len(swept) + len(lines)), across=3)
    for axes, (server, name) in zip(panels, swept, strict=False):
        here = select(rows, server=server, scenario=name)
        model = "SimpleCNN" if name == "capacity" else "SqueezeNet"
        courses.latency(axes, [row["rate"] for row in here], here, f"{server}: {model}")
    for axes, row in zip(panels[len(swept) :], lines, strict=False):
        courses.draw(axes, row, f"{row['server']}: {TITLES[row['scenario']]}")
    return drawn
