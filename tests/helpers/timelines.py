"""What tests of phases share."""

OURS = ("copy", "encode", "start", "wire", "decode", "other")


def total(report):
    """The sum of all phases: each moment is in one."""
    return report["computing"] + (report["optimizer"] or 0.0) + sum(report[part]["exposed"] for part in OURS)


def since(report, earlier):
    """What has come to each phase since an earlier report."""
    if isinstance(report, dict):
        return {key: since(value, earlier[key]) for key, value in report.items()}
    return None if report is None else report - (earlier or 0.0)
