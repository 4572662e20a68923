"""Lists what was left out and what occurs more than once: two labels, near copies, exact copies, reasons."""

from dataclasses import replace

import pandas as pd

from convoy.pages.page import NAME
from stages.ingest.report.gallery import Gallery, View
from stages.ingest.report.values import NAMES, count_values

GROUPS, MEMBERS = 16, 5  # of near copies
CONFLICTS, COPIES, REASONS = 16, 24, 20


def list_conflicts(doubles: pd.DataFrame, gallery: Gallery) -> dict:
    """Returns the pairs of examples that are the same, or nearly, under two labels."""
    rows = doubles[doubles["label"] != doubles["other_label"]]
    pairs = []
    for row in rows[:CONFLICTS].itertuples():
        first, second = gallery.named(row.path, row.label), gallery.named(row.same_as, row.other_label)
        if row.how == "same":  # shows the same
            first = replace(second, path=row.path, label=row.label, split="")
        pairs.append((first, second, row.how))
    return {"pairs": pairs, "count": len(rows)}


def list_near(doubles: pd.DataFrame, manifest: pd.DataFrame, gallery: Gallery) -> dict:
    """Returns the largest groups of near copies; members that were left out belong to them too."""
    members = manifest.loc[manifest["near"] != "", ["path", "near"]].reset_index(names="position")
    pairs = doubles.loc[doubles["how"] == "near", ["path", "label", "same_as", "other_label"]]
    turned = pairs.set_axis(["same_as", "other_label", "path", "label"], axis=1)
    ends = pd.concat([pairs, turned])
    out = ends.loc[gallery.positions(ends["path"]) < 0, ["path", "label", "same_as"]]
    groups_of = members.set_axis(["position", "same_as", "near"], axis=1)
    left_out = out.merge(groups_of, on="same_as").drop_duplicates("path")
    sizes = pd.concat([members["near"], left_out["near"]]).value_counts(sort=False)
    first = members.groupby("near")["position"].first()
    table = pd.DataFrame({"size": sizes, "first": first}).sort_values(["size", "first"], ascending=[False, True])
    groups = []
    for near, size in table["size"][:GROUPS].items():
        out = left_out[left_out["near"] == near]
        kept = members.loc[members["near"] == near, "position"][: MEMBERS - min(len(out), 2)]
        views = [gallery.view(position) for position in kept]
        views += [View(row.path, row.label) for row in out[: MEMBERS - len(views)].itertuples()]
        groups.append({"views": views, "rest": int(size) - len(views)})
    return {"groups": groups, "count": len(table), "members": len(members), "left_out": len(left_out)}


def list_copies(doubles: pd.DataFrame, gallery: Gallery) -> dict:
    """Returns the examples with the most exact copies, and the paths of these."""
    same = doubles[doubles["how"] == "same"]
    most = count_values(same["same_as"])[:COPIES]
    rows = []
    for kept, count in most.items():
        paths = same.loc[same["same_as"] == kept, "path"][:NAMES].tolist()
        rows.append({"kept": gallery.named(kept, ""), "paths": paths, "count": int(count)})
    return {"rows": rows, "count": len(same), "kept": same["same_as"].nunique()}


def list_reasons(refused: pd.DataFrame, doubles: pd.DataFrame) -> list[dict]:
    """Returns what was left out by reason, the most frequent first; what stands behind a colon is no other reason."""
    names, paths = refused["reason"].str.split(":").str[0].str.slice(0, NAME), refused["path"]
    names[paths.isin(doubles["path"]) | paths.isin(doubles["same_as"])] = "nearly the same as another"
    names[paths.isin(doubles.loc[doubles["how"] == "same", "path"])] = "the same as another"
    counts = count_values(names)
    result = []
    for name, count in counts[:REASONS].items():
        examples = refused[names == name][:NAMES]
        result.append({"name": name, "count": int(count), "rows": list(examples.itertuples(index=False))})
    rest = int(counts[REASONS:].sum())
    return result + ([{"name": "other reasons", "count": rest, "rows": []}] if rest else [])
