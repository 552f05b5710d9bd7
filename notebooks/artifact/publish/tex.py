r"""A table as a LaTeX float that fits: one column of a two-column paper where it can, else the page's width.

The preamble needs `\usepackage{booktabs,graphicx}`; the file says so in its first line.
"""

import re

import pandas as pd

COLUMN, PAGE = 58, 120  # characters of \footnotesize that fit into a column and a page of a two-column paper
_LONGEST = 36  # characters of a text cell, beyond which its column breaks lines


def float_of(shown: pd.DataFrame, numeric: list[bool], *, stem: str, caption: str) -> str:
    """The LaTeX source of a table of texts.

    numeric   which columns hold numbers, and are set to the right

    Text columns with long cells break their lines; a table that is too wide all the same is scaled down.
    """
    widths = [max(len(name), *map(len, shown[name])) for name in shown.columns]
    broken = [width > _LONGEST and not its for width, its in zip(widths, numeric, strict=True)]
    fixed = sum(width + 2 for width, its in zip(widths, broken, strict=True) if not its)
    wide = fixed + sum(broken) * _LONGEST > COLUMN
    room = max((PAGE if wide else COLUMN) - fixed, sum(broken) * 20)
    share = room / (PAGE if wide else COLUMN) / max(sum(broken), 1)
    columns = "".join(
        rf"p{{{share:.2f}\linewidth}}" if its else "r" if number else "l"
        for its, number in zip(broken, numeric, strict=True)
    )
    rows = [" & ".join(map(escape, row)) + r" \\" for row in shown.itertuples(index=False)]
    environment = "table*" if wide else "table"
    return "\n".join(
        [
            rf"% needs \usepackage{{booktabs,graphicx}}; cite with \cite{{disco-core:{stem}}} of exhibits.bib",
            rf"\begin{{{environment}}}[t]",
            r"\centering\footnotesize",
            rf"\caption{{{escape(caption)}}}",
            rf"\label{{tab:{stem.replace('_', '-')}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(escape, shown.columns)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}",
            rf"\end{{{environment}}}",
            "",
        ]
    )


def escape(text: str) -> str:
    r"""Text with LaTeX's special characters escaped, and signs outside ASCII in commands.

    >>> print(escape("50 % of x_1"))
    50 \% of x\_1
    """
    return re.sub("|".join(map(re.escape, _SPECIAL)), lambda match: _SPECIAL[match[0]], text)


_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\u2013": "--",
    "\u2212": "$-$",
    "\u00b1": r"$\pm$",
    "\u00b2": r"\textsuperscript{2}",
    "\u00d7": r"$\times$",
    "\u03b1": r"$\alpha$",
    "\u03bb": r"$\lambda$",
    "\u03b6": r"$\zeta$",
    "\u2265": r"$\geq$",
    "\u2264": r"$\leq$",
    "\u2192": r"$\rightarrow$",
    "\u2026": r"\ldots{}",
}
