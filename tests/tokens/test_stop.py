"""Stop texts: whatever the borders of the pieces, the text ends where the whole text's first stop begins."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openlpu.tokens.stop import StopText

words = st.text("ab.", max_size=6)


@given(st.lists(words, max_size=12), st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3))
def test_the_earliest_completed_stop_ends_the_text(pieces, stops):
    stop = StopText(stops)
    said = ""
    for piece in pieces:
        said += stop.push(piece)
        if stop.found:
            break
    said += stop.finish()
    # The reference reads characters one by one and stops as soon as some stop text is complete.
    whole = "".join(pieces)
    hits = ((n, s) for n in range(1, len(whole) + 1) for s in sorted(stops, key=len) if whole[:n].endswith(s))
    first = min(((n, n - len(s)) for n, s in hits), default=None)
    assert stop.found == (first is not None)
    assert said == (whole if first is None else whole[: first[1]])


def test_text_is_shown_as_early_as_is_safe():
    stop = StopText(["END"])
    assert [stop.push(p) for p in ("abE", "N", "x", "EEN", "Dz", "more")] == ["ab", "", "ENx", "E", "", ""]
    assert stop.found and stop.finish() == ""
