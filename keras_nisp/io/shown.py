"""How results show themselves: in full where they are printed, else in one line."""

import html

LONGEST = 100  # characters of a line


class Shown:
    """A result that `print` shows in full; a notebook does so, too, and a debugger in one line."""

    def __repr__(self) -> str:
        line, *more = str(self).splitlines() or [""]
        if more or len(line) > LONGEST:
            line = line[: LONGEST - 3].rstrip(" :,.;") + "..."
        return f"<{type(self).__name__}: {line}>"

    def _repr_html_(self) -> str:
        return f'<pre style="white-space: pre-wrap">{html.escape(str(self))}</pre>'
