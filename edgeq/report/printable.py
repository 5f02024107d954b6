"""Names come from models, and may hold what a terminal or a page would obey."""

import re

# Control characters, line and paragraph separators, marks that reverse the reading direction, lone surrogates.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
