"""Tables and numbers as Markdown."""

import pandas as pd


def markdown(view: pd.DataFrame) -> str:
    """A table as GitHub Markdown."""
    rows = [[*(name or "" for name in view.index.names), *view.columns],
            ["---"] * (view.index.nlevels + view.shape[1])]
    rows += [[*(key if isinstance(key, tuple) else (key,)), *row]
             for key, row in zip(view.index, view.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def three(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
