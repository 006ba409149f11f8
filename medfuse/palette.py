"""Colours of every chart and figure: of the review, the report, Jupyter and exported records."""

# Blue and vermilion of Okabe and Ito, and four darker than theirs: of these six any two differ by 27 (CIE 1976) for
# normal, protanope and deuteranope eyes, and each has a contrast of 3 or more to white, which orange, sky blue and
# purple of theirs have not. Blue lowers, vermilion raises; the direction of a bar and its sign say the same.
BLUE, VERMILION, GREEN, BROWN, PLUM, TEAL = "#0072B2", "#D55E00", "#00985E", "#713A12", "#6A445D", "#349EB0"
SERIES = (BLUE, VERMILION, GREEN, BROWN, PLUM, TEAL)
INK, GREY = "#1a1a1a", "#5c5c5c"  # also of text
RAISES, LOWERS = VERMILION, BLUE
