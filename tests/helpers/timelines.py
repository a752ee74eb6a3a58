"""What tests of phases and traces share."""

import json
from collections import defaultdict

OURS = ("copy", "encode", "start", "wire", "decode", "other")


def total(report):
    """The sum of all phases: each moment is in one."""
    return report["computing"] + (report["optimizer"] or 0.0) + sum(report[part]["exposed"] for part in OURS)


def since(report, earlier):
    """What has come to each phase since an earlier report."""
    if isinstance(report, dict):
        return {key: since(value, earlier[key]) for key, value in report.items()}
    return None if report is None else report - (earlier or 0.0)


def read(path):
    """The events of a trace that may not have been closed yet, by line and step: what, and of wires the round."""
    text = path.read_text()
    events = json.loads(text if text.rstrip().endswith("]") else text + "]")
    lines = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    found = defaultdict(lambda: defaultdict(list))
    for event in sorted((event for event in events if event["ph"] == "X"), key=lambda event: event["ts"]):
        round_of = (event["args"]["round"],) if "round" in event["args"] else ()
        found[lines[event["tid"]]][event["args"]["step"]].append((event["name"], *round_of))
    return found
