"""One style, one function a figure; a figure shows data and computes nothing."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from dlcf.training import History

SCREEN_DPI, PRINT_DPI = 110, 200
COLUMN, PAGE = 3.5, 7.2  # inches: one and two columns of a printed page
BLUE, ORANGE, GREEN, RED, PURPLE, BROWN, PINK, GREY, YELLOW, CYAN = sns.color_palette("colorblind")
Style = dict[str, Any]  # keyword arguments of a drawing
BELOW: Style = {"loc": "outside lower center", "frameon": False}  # of a figure's legend
SPLIT_NAMES = {  # where the name in print is another
    "user-temporal": "per-user temporal",
    "global-temporal": "global temporal",
    "leave-last-out": "leave last out",
}


def use_style() -> None:
    """Set the one look of all figures: print sizes, colour-blind-safe palette, light grid."""
    sns.set_theme(context="paper", style="whitegrid", palette="colorblind")
    mpl.rc("figure", dpi=SCREEN_DPI)
    mpl.rc("figure.constrained_layout", use=True)
    mpl.rc("savefig", bbox="tight")
    mpl.rc("font", size=9)
    mpl.rc("axes", titlesize=9, labelsize=9)
    mpl.rc("axes.spines", top=False, right=False)
    mpl.rc("legend", fontsize=8)
    mpl.rc("xtick", labelsize=8)
    mpl.rc("ytick", labelsize=8)
    mpl.rc("pdf", fonttype=42)


def figure_bytes(figure: Figure, ending: str, dpi: int = PRINT_DPI) -> bytes:
    """The figure as a ``"pdf"`` or ``"png"`` file; the same figure gives the same bytes."""
    # Without these the file would name the day and the version of the library that drew it.
    dated = {"pdf": {"CreationDate": None, "Producer": None, "Creator": None}}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=ending, dpi=dpi, metadata=dated.get(ending, {"Software": None}))
    return buffer.getvalue()


def _panels(n: int, height: float, width: float = PAGE, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure of `n` panels side by side; the sizes are inches."""
    figure, axes = plt.subplots(1, n, figsize=(width, height), squeeze=False, **shared)
    return figure, list(axes[0])


def rating_distribution(ratings: pd.DataFrame) -> Figure:
    """Share of each rating level, and the distribution of users' mean ratings."""
    figure, (left, right) = _panels(2, 2.5)
    share = ratings["rating"].value_counts(normalize=True).sort_index()
    left.bar(share.index, 100 * share, width=0.8 * np.diff(share.index).min(), color=BLUE)
    left.set(xlabel="rating (stars)", ylabel="ratings (%)", title="All ratings")
    means = ratings.groupby("userId")["rating"].mean()
    right.hist(means, bins=30, color=ORANGE)
    right.axvline(ratings["rating"].mean(), color="black", linestyle="--", label="global mean")
    right.set(xlabel="mean rating of a user (stars)", ylabel="users", title="Users differ")
    right.legend()
    return figure


def long_tail(ratings: pd.DataFrame) -> Figure:
    """Ratings by movie and by user, both ordered by activity, and the share that the top holds."""
    figure, axes = _panels(2, 2.5)
    sides = ("movieId", "movies", BLUE), ("userId", "users", ORANGE)
    for axis, (column, unit, color) in zip(axes, sides, strict=True):
        counts = ratings[column].value_counts().to_numpy()
        axis.loglog(np.arange(1, len(counts) + 1), counts, color=color)
        axis.set(xlabel=f"{unit}, most ratings first (rank)", ylabel="ratings")
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.yaxis.set_major_formatter("{x:,.0f}")
        n_half = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2)) + 1
        axis.axvline(n_half, color="black", linestyle="--")
        axis.set_title(f"{n_half:,} of {len(counts):,} {unit} hold half of the ratings")
    return figure


def activity_over_time(ratings: pd.DataFrame) -> Figure:
    """Ratings a year, and how long users stay: the span from first to last rating."""
    figure, (left, right) = _panels(2, 2.5)
    year = pd.to_datetime(ratings["timestamp"], unit="s").dt.year.value_counts().sort_index()
    left.bar(year.index, year / 1000, color=BLUE)
    left.set(xlabel="year", ylabel="ratings (thousands)", title="Ratings a year")
    span = ratings.groupby("userId")["timestamp"].agg(lambda t: t.max() - t.min()) / 86400
    right.plot(np.sort(span), 100 * np.arange(1, len(span) + 1) / len(span), color=ORANGE)
    right.set(xscale="log", ylim=(0, 100), title="How long users stay", ylabel="users (%)")
    right.set_xticks([1 / 24, 1, 30, 3650], ["1 hour", "1 day", "1 month", "10 years"])
    right.set_xlabel("time from first to last rating")
    right.minorticks_off()
    return figure


def genres(table: pd.DataFrame) -> Figure:
    """Share of ratings and mean rating by genre.

    `table` has a row for each genre and the columns ``share`` (of ratings, 0 to 1), ``mean``
    (stars) and ``error`` (standard error of the mean).
    """
    table = table.sort_values("share")
    figure, (left, right) = _panels(2, 3.4, sharey=True)
    left.barh(table.index, 100 * table["share"], color=BLUE)
    left.set(xlabel="ratings with this genre (%)")
    right.errorbar(table["mean"], table.index, xerr=1.96 * table["error"], fmt="o", color=ORANGE)
    right.set(xlabel="mean rating (stars)")
    return figure


def learning_curves(histories: Mapping[str, Sequence[History]]) -> Figure:
    """Train and validation RMSE by epoch, one panel a model, one line a seed.

    Of the first seed the best epoch is marked, and where the learning rate changed.
    """
    width = PAGE if len(histories) > 1 else COLUMN + 1
    figure, axes = _panels(len(histories), 2.7, width, sharey=True)
    for axis, (name, (first, *others)) in zip(axes, histories.items(), strict=True):
        epochs = np.arange(1, len(first.train_loss) + 1)
        for side, style, color in (("train", "o-", BLUE), ("validation", "s--", ORANGE)):
            for history in others:
                axis.plot(epochs, np.sqrt(getattr(history, f"{side}_loss")), color=color, alpha=0.3)
            losses = np.sqrt(getattr(first, f"{side}_loss"))
            axis.plot(epochs, losses, style, markersize=3, color=color, label=side)
        best = first.best_epoch
        axis.plot(best, losses[best - 1], "*", markersize=9, color="black", label="best epoch")
        for step in np.flatnonzero(np.diff(first.learning_rate)) + 1.5:
            axis.axvline(step, color=GREY, linestyle=":", label="learning rate changed")
        axis.set(xlabel="epoch", title=name)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("RMSE (stars)")
    drawn = [axis.get_legend_handles_labels() for axis in axes]
    entries = {k: v for handles, labels in drawn for k, v in zip(labels, handles, strict=True)}
    axes[-1].legend(entries.values(), entries, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def factor_map(points: pd.DataFrame, labels: tuple[str, str]) -> Figure:
    """Movies on two directions of factor space; `labels` say what the axes mean.

    `points` has ``x``, ``y``, ``title``, the most rated first; those have titles that have room.
    """
    figure, axis = plt.subplots(figsize=(PAGE, 4.6))
    axis.scatter(points["x"], points["y"], s=6, color=GREY, alpha=0.6)
    letter, line = np.ptp(points["x"]) / 100, np.ptp(points["y"]) / 15
    written: list[tuple[float, float, float]] = []
    for x, y, title in points[["x", "y", "title"]].itertuples(index=False, name=None):
        title = _shorten(title.split(" (")[0], 28)
        half = letter * len(title) / 2
        if all(abs(x - u) > half + other or abs(y - v) > line for u, v, other in written):
            written.append((x, y, half))
            axis.plot(x, y, "o", markersize=4, color=BLUE)
            style: Style = {"textcoords": "offset points", "ha": "center", "size": 7}
            axis.annotate(title, (x, y), (0, 4), **style)
    axis.set(xlabel=labels[0], ylabel=labels[1])
    axis.margins(x=0.08)
    return figure


def diagram(boxes: Mapping[str, tuple[float, float, str]], arrows: str) -> Figure:
    """A network as boxes, each with its place and its text.

    `arrows` is words such as ``"a>b"``: from the box `a` to the box `b`. Boxes whose name begins
    with ``attention`` are of another colour.
    """
    figure, axis = plt.subplots(figsize=(PAGE, 2.5))
    axis.axis("off")
    drawn, style = {}, Style(ha="center", va="center", size=6.5)
    for name, (x, y, text) in boxes.items():
        color = ORANGE if name.startswith("attention") else BLUE
        frame = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": color}
        drawn[name] = axis.text(x, y, text, bbox=frame, **style)
    for start, end in (word.split(">") for word in arrows.split()):
        ends = {"patchA": drawn[start].get_bbox_patch(), "patchB": drawn[end].get_bbox_patch()}
        arrow = {"arrowstyle": "->", "color": "black", **ends}
        axis.annotate("", boxes[end][:2], boxes[start][:2], arrowprops=arrow)
    axis.set_xlim(-0.5, max(x for x, _, _ in boxes.values()) + 0.5)
    return figure


def paper_comparison(table: pd.DataFrame) -> Figure:
    """The paper's metrics, column ``paper``, beside ours, one column for each way to compute."""
    figure, axis = plt.subplots(figsize=(PAGE, 2.8))
    rows = np.arange(len(table))[::-1]
    axis.plot(table["paper"], rows, "D", color="black", markersize=7, label="paper")
    ours = table.drop(columns="paper")
    styles = list(zip("osv^P", (BLUE, ORANGE, GREEN, PURPLE, BROWN), strict=True))
    for index, (name, values) in enumerate(ours.items()):
        marker, color = styles[index]
        shift = 0.16 * (index - (ours.shape[1] - 1) / 2)
        axis.plot(values, rows - shift, marker, color=color, markersize=4.5, label=name)
    axis.set_yticks(rows, table.index)
    axis.set(xlabel="value (RMSE and MAE in stars, the others as shares)")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def forest(
    tables: Mapping[str, pd.DataFrame], label: str, reference: float | None = None
) -> Figure:
    """Means with intervals, one panel a split; models of ours in another colour and shape.

    `tables` maps a split to a frame with index model, the top one first, and columns ``mean``,
    ``low``, ``high``. `label` says what the numbers are, with the unit; a line stands at
    `reference`.
    """
    rows = max(len(table) for table in tables.values())
    figure, axes = _panels(len(tables), 0.7 + 0.2 * rows)
    for axis, (split, table) in zip(axes, tables.items(), strict=True):
        place = np.arange(len(table))[::-1]
        error = [table["mean"] - table["low"], table["high"] - table["mean"]]
        ours = table.index.str.startswith("deepcf")
        for group, color, marker in ((~ours, BLUE, "o"), (ours, ORANGE, "D")):
            style = {"fmt": marker, "color": color, "markersize": 4, "capsize": 2}
            sides = [side[group] for side in error]
            axis.errorbar(table["mean"][group], place[group], xerr=sides, **style)
        if reference is not None:
            axis.axvline(reference, color="black", linewidth=0.8)
        axis.xaxis.set_major_locator(MaxNLocator(8 // len(tables)))
        axis.set_yticks(place, [_short_name(model) for model in table.index])
        axis.set(xlabel=label, title=SPLIT_NAMES.get(split, split))
    return figure


def pairwise_matrix(difference: pd.DataFrame, significant: pd.DataFrame, label: str) -> Figure:
    """Differences between all pairs of models, row minus column; a dot where one is significant.

    Both frames are square, with the same index and columns; `difference` has NaN on the diagonal.
    """
    figure, axis = plt.subplots(figsize=(PAGE, 5.6))
    limit = float(np.nanmax(np.abs(difference.to_numpy())))
    image = axis.imshow(difference, cmap="PuOr", vmin=-limit, vmax=limit)
    row, column = np.nonzero(significant.to_numpy())
    axis.plot(column, row, "o", color="black", markersize=2.5)
    names = [_short_name(model) for model in difference.index]
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.grid(False)
    figure.colorbar(image, label=label, shrink=0.8)
    return figure


def curves(tables: Mapping[str, pd.DataFrame], x_label: str, y_label: str = "") -> Figure:
    """Lines with bands, one panel a table, over a logarithmic axis.

    `tables` maps a title to a frame with columns ``model``, ``x``, ``mean``, ``low``, ``high``, and
    ``bin`` where places have names; without a `y_label` the titles say what is shown.
    """
    figure, axes = _panels(len(tables), 3.0)
    markers, palette = "os^vDP*Xd<>", sns.color_palette("colorblind")
    for axis, (title, table) in zip(axes, tables.items(), strict=True):
        for index, (model, line) in enumerate(table.groupby("model", sort=False)):
            style = {"color": palette[index % len(palette)], "marker": markers[index]}
            axis.plot(line["x"], line["mean"], label=model, markersize=3.5, linewidth=1, **style)
            band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
            axis.fill_between(line["x"], line["low"], line["high"], **band)
        axis.set(xlabel=x_label, xscale="log", ylabel=y_label or title)
        ticks = {x: str(x) for x in (1, 2, 5, 10, 20, 50)}
        if "bin" in table:
            ticks = dict(zip(table["x"], table["bin"], strict=True))
        axis.set_xticks(list(ticks), list(ticks.values()), rotation=45 if "bin" in table else 0)
        axis.minorticks_off()
        axis.set_title(SPLIT_NAMES.get(title, title) if y_label else "")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def genre_shares(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Shares of genres, one panel a table: index genre, a column and a bar for each source."""
    figure, axes = _panels(len(tables), 3.6, sharex=True, sharey=True)
    colors = [GREY, ORANGE, BLUE, GREEN]
    for axis, (title, table) in zip(axes, tables.items(), strict=True):
        (100 * table[::-1]).plot.barh(ax=axis, width=0.8, color=colors, legend=False)
        axis.set(xlabel="movies (%)", ylabel="", title=title)
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def calibration(tables: Mapping[str, pd.DataFrame], x_label: str, y_label: str) -> Figure:
    """What models say against what comes of it; on the diagonal they are right.

    `tables` maps a model to a frame with ``confidence``, ``outcome`` and ``cases``. The area of a
    point shows its share of the cases; bins with fewer than 10 cases are not drawn.
    """
    figure, axes = _panels(len(tables), 2.5, sharey=True)
    for axis, (model, table) in zip(axes, tables.items(), strict=True):
        table = table[table["cases"] >= 10]
        both = pd.concat([table["confidence"], table["outcome"]])
        ends = [both.min(), both.max()]
        axis.plot(ends, ends, color="black", linestyle="--", linewidth=1)
        axis.plot(table["confidence"], table["outcome"], color=BLUE, linewidth=1)
        share = table["cases"] / table["cases"].sum()
        axis.scatter(table["confidence"], table["outcome"], s=4 + 250 * share, color=BLUE)
        axis.set(xlabel=x_label, title=model)
    axes[0].set_ylabel(y_label)
    return figure


def reading_errors(tables: Mapping[str, pd.DataFrame], references: Mapping[str, float]) -> Figure:
    """Errors by reading of the paper, one panel a split, with the paper's values as lines.

    `tables` maps a split to what :func:`~dlcf.paper.replication.error_table` gives: a thick bar is
    the interval of the mean, a thin one that of a single run.
    """
    rows = max(len(table) for table in tables.values())
    figure, axes = _panels(len(tables), 0.8 + 0.2 * rows, sharey=True)
    for axis, (split, table) in zip(axes, tables.items(), strict=True):
        place = np.arange(len(table))[::-1]
        best = table.index.str.endswith("best epoch")
        for group, color, marker in ((best, BLUE, "o"), (~best, ORANGE, "D")):
            part, at = table[group], place[group]
            axis.hlines(at, part["least"], part["most"], color=color, linewidth=0.8)
            axis.hlines(at, part["low"], part["high"], color=color, linewidth=3, alpha=0.6)
            axis.plot(part["mean"], at, marker, color=color, markersize=4)
        for style, (name, value) in zip(("-", "--"), references.items(), strict=False):
            axis.axvline(value, color="black", linestyle=style, linewidth=0.8, label=name)
        axis.set_yticks(place, table.index)
        axis.set(xlabel="RMSE (stars)", title=SPLIT_NAMES.get(split, split))
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=2, **BELOW)
    return figure


def changes(tables: Mapping[str, Mapping[str, pd.DataFrame]], label: str) -> Figure:
    """Changes against a common base, one panel a split; filled where the corrected p is below 0.05.

    `tables` maps a split to a :func:`~dlcf.paper.components.component_table` for each colour.
    """
    rows = len(next(iter(next(iter(tables.values())).values())))
    figure, axes = _panels(len(tables), 1.0 + 0.22 * rows, sharey=True)
    for axis, (split, series) in zip(axes, tables.items(), strict=True):
        styles = ((BLUE, "o", 0.15), (ORANGE, "D", -0.15))
        for (name, table), (color, marker, shift) in zip(series.items(), styles, strict=False):
            place = np.arange(len(table))[::-1] + shift
            axis.hlines(place, table["low"], table["high"], color=color, linewidth=1)
            for group, face in ((clear := table["p_holm"] < 0.05, color), (~clear, "white")):
                part = table["mean"][group], place[group], marker
                axis.plot(*part, color=color, markerfacecolor=face, markersize=4)
            axis.plot([], [], marker, color=color, markersize=4, label=name)
        axis.axvline(0, color="black", linewidth=0.8)
        kinds = table.index.str.split(":").str[0]
        for row in np.flatnonzero(kinds[1:] != kinds[:-1]):
            axis.axhline(rows - 1.5 - row, color="0.8", linewidth=0.6)
        axis.grid(axis="y", visible=False)
        axis.set_yticks(np.arange(rows)[::-1], table.index)
        axis.set(xlabel=label, title=SPLIT_NAMES.get(split, split), ylim=(-0.6, rows - 0.4))
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=2, **BELOW)
    return figure


def protocol_cloud(table: pd.DataFrame, paper: Mapping[str, float]) -> Figure:
    """Precision and recall of protocols by threshold and users, and where the paper stands."""
    thresholds = table.groupby("threshold")
    figure, axes = _panels(len(thresholds), 2.6, sharex=True, sharey=True)
    for axis, (threshold, part) in zip(axes, thresholds, strict=True):
        for index, (users, group) in enumerate(part.groupby("users", sort=False)):
            style = {"marker": "os^v"[index], "color": (BLUE, ORANGE, GREEN, PURPLE)[index]}
            axis.scatter(group["recall@10"], group["precision@10"], s=7, label=users, **style)
        axis.plot(paper["recall@10"], paper["precision@10"], "k*", markersize=11, label="paper")
        axis.set(xlabel="recall@10", title=f"relevant from {threshold} stars")
    axes[0].set_ylabel("precision@10")
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=5, **BELOW)
    return figure


def protocol_effects(table: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """How far each ``choice`` and ``value`` alone moves each of `metrics`, columns of `table`."""
    figure, axis = plt.subplots(figsize=(PAGE, 0.6 + 0.19 * len(table)))
    values = table[list(metrics)].to_numpy()
    axis.imshow(values, cmap="PuOr", vmin=-0.3, vmax=0.3, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        style: Style = {"fontsize": 7.5, "color": "white" if abs(value) > 0.2 else "black"}
        text = f"{value:+.3f}" if abs(value) >= 0.0005 else "0"
        axis.text(column, row, text, ha="center", va="center", **style)
    axis.set_yticks(range(len(table)), table["choice"] + ": " + table["value"])
    axis.set_xticks(range(len(metrics)), metrics)
    axis.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    axis.grid(False)
    return figure


def bench(ratios: pd.DataFrame, sizes: pd.DataFrame, vocabulary: pd.DataFrame) -> Figure:
    """How many times as fast as a reference, from 1, and what time and memory cost by size.

    The tables are :func:`~dlcf.notebook.bench_tables.ratio_table`, `size_table` and
    `vocabulary_table`.
    """
    size = PAGE, max(4.0, 0.9 + 0.38 * len(ratios))
    layout = "REM;RSS"  # ratios, epoch, memory; step
    figure, axes = plt.subplot_mosaic(layout, figsize=size, width_ratios=(2, 1, 1))
    place = np.arange(len(ratios))[::-1]
    left = axes["R"]
    left.barh(place, ratios["ratio"] - 1, left=1, color=BLUE, height=0.6)
    left.set(xscale="log", xlabel="times as fast as the reference", yticks=place)
    left.set_yticklabels([textwrap.fill(name, 24) for name in ratios.index])
    left.axvline(1, color="black", linewidth=0.8)
    left.xaxis.set_major_formatter("{x:g}")
    colors = {"deepcf": BLUE, "mf": ORANGE}
    for panel, column, unit, label in (
        ("E", "fit_s", 1.0, "one epoch (s)"),
        ("M", "peak_bytes", 2.0**30, "peak memory (GiB)"),
    ):
        for model, rows in sizes.groupby("model"):
            color = colors[str(model)]
            axes[panel].plot(rows["ratings"], rows[column] / unit, marker="o", color=color)
        axes[panel].set(xlabel="ratings", ylabel=label)
    for model, rows in vocabulary.groupby("model"):
        for column, line, how in (("dense_ms", "--", "dense Adam"), ("ours_ms", "-", "here")):
            style = {"marker": "o", "color": colors[str(model)], "label": f"{model}, {how}"}
            axes["S"].plot(rows["rows"], rows[column], line, **style)
    axes["S"].set(xlabel="users and movies", ylabel="one step (ms)")
    above: Style = {"loc": "lower center", "ncols": 2, "frameon": False}
    axes["S"].legend(fontsize="small", bbox_to_anchor=(0.45, 1.0), **above)
    for panel in "EMS":
        axes[panel].set(xscale="log", yscale="log")
        low, high = axes[panel].dataLim.intervaly
        axes[panel].set_ylim(low / 1.6, high * 1.6)  # wide enough for two numbers on the axis
        axes[panel].yaxis.set_major_formatter("{x:g}")
    return figure


def two_lists(lists: Mapping[str, pd.DataFrame]) -> Figure:
    """Lists of one user, best first: predicted ratings, and how many ratings each movie has.

    `lists` maps a name to a frame with ``title``, ``predicted`` (stars), ``ratings`` (of train).
    """
    figure, axes = plt.subplots(1, len(lists), figsize=(PAGE, 3.2))
    for axis, (name, table), color in zip(axes, lists.items(), (ORANGE, BLUE), strict=True):
        rows = np.arange(len(table))[::-1]
        axis.barh(rows, table["ratings"], color=color, height=0.6)
        beside: Style = {"textcoords": "offset points", "va": "center", "size": 7}
        for row, count, predicted in zip(rows, table["ratings"], table["predicted"], strict=True):
            axis.annotate(f"{count} ({predicted:.2f} stars)", (count, row), (3, 0), **beside)
        axis.set_yticks(rows, [_shorten(title, 26) for title in table["title"]])
        axis.set(xlabel="training ratings (predicted stars)", title=name)
        axis.set_xlim(0, 1.6 * max(part["ratings"].max() for part in lists.values()))
        axis.grid(axis="y", visible=False)
    return figure


def spreads(rows: Mapping[str, Any], label: str, reference: float) -> Figure:
    """How values are spread, a row each: median, middle half (thick), middle nine tenths (thin)."""
    figure, axis = plt.subplots(figsize=(PAGE - 1, 0.6 + 0.3 * len(rows)))
    for place, values in zip(range(len(rows))[::-1], rows.values(), strict=True):
        low, left, middle, right, high = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
        axis.plot([low, high], [place, place], color=BLUE, linewidth=1.2)
        axis.plot([left, right], [place, place], color=BLUE, linewidth=5, solid_capstyle="butt")
        axis.plot(middle, place, "o", color="white", markeredgecolor="black", markersize=5)
    axis.axvline(reference, color="black", linestyle="--", linewidth=0.8)
    axis.set_yticks(range(len(rows))[::-1], list(rows))
    axis.set(xlabel=label, xlim=(0, 1), ylim=(-0.6, len(rows) - 0.4))
    return figure


def deletion_curves(tables: Mapping[str, pd.DataFrame], labels: tuple[str, str]) -> Figure:
    """How a prediction changes as ratings are deleted in some orders, with bands.

    `tables` maps an order to a frame with ``fraction``, ``mean``, ``low``, ``high``; `labels` are
    those of the axes.
    """
    figure, axis = plt.subplots(figsize=(PAGE, 3.2))
    styles = zip(tables.items(), (BLUE, ORANGE, GREEN, PURPLE, BROWN, GREY), "os^vDP", strict=False)
    for (name, table), color, marker in styles:
        x = 100 * table["fraction"]
        axis.plot(x, table["mean"], color=color, marker=marker, markersize=4, label=name)
        axis.fill_between(x, table["low"], table["high"], color=color, alpha=0.12, linewidth=0)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xlabel=labels[0], ylabel=labels[1])
    axis.legend(title="deleted first", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def share_against_share(panels: Mapping[str, tuple[Any, Any]]) -> Figure:
    """The user's share by interventions and by attention; on the diagonal they agree.

    `panels` maps a title to shares of the same pairs, in [0, 1]: Shapley's, then the attention's.
    """
    figure, axes = _panels(len(panels), 2.9, sharey=True)
    style: Style = {"gridsize": 35, "extent": (0, 1, 0, 1), "cmap": "Blues", "bins": "log"}
    for axis, (title, (shapley, attention)) in zip(axes, panels.items(), strict=True):
        axis.hexbin(shapley, attention, mincnt=1, **style)
        axis.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
        axis.set(xlabel="Shapley share of the user", title=title, xlim=(0, 1), ylim=(0, 1))
    axes[0].set_ylabel("attention on the user")
    return figure


def matrix_sample(counts: NDArray[Any]) -> Figure:
    """A corner of the rating matrix: a dark cell is a rating."""
    figure, axis = plt.subplots(figsize=(PAGE, 2.6))
    axis.imshow(counts, cmap="Blues", aspect="auto", interpolation="nearest")
    axis.set(xlabel="movies, most rated first", ylabel="users, most active first")
    axis.grid(False)
    return figure


def trade_offs(panels: Mapping[tuple[str, str], pd.DataFrame], ours: Sequence[str]) -> Figure:
    """What models reach against what they take, one panel of points with names for each pair.

    `panels` maps the labels of both axes to a frame with index model, in order of the metric, and
    columns ``x``, on a logarithmic axis, ``mean``, ``low`` and ``high``. Models of `ours` have
    another colour.
    """
    rows = -(-len(panels) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(PAGE, 3.2 * rows))
    for axis, ((x_label, y_label), table) in zip(axes.flat, panels.items(), strict=True):
        for place, (model, of) in enumerate(table.iterrows()):
            color, marker = (ORANGE, "D") if model in ours else (BLUE, "o")
            error = [[of["mean"] - of["low"]], [of["high"] - of["mean"]]]
            style: Style = {"fmt": marker, "color": color, "markersize": 4, "capsize": 2}
            axis.errorbar(of["x"], of["mean"], yerr=error, **style)
            # To the right and to the left by turns: neighbours' names do not cover each other.
            side, away = ("right", -5) if place % 2 else ("left", 5)
            name: Style = {"textcoords": "offset points", "size": 6.5, "va": "center", "ha": side}
            axis.annotate(str(model), (of["x"], of["mean"]), (away, 0), **name)
        axis.set(xscale="log", xlabel=x_label, ylabel=y_label)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.25)
    return figure


def _short_name(model: str) -> str:
    return model.replace(", ranking output (best epoch)", " + ranking")


def _shorten(text: str, length: int = 34) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
